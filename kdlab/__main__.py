"""``python -m kdlab`` is the command ``kdlab``."""

import os
import sys

if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:  # noqa: PTH109 - or its pathlib.py
    del sys.path[0]  # a stranger's pandas.py in the working folder is none of ours

from kdlab.cli import app

app(prog_name="kdlab")
