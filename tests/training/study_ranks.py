"""A study of two ranks: torchrun --standalone --nproc-per-node=2 study_ranks.py FOLDER."""

import os
import sys
from pathlib import Path

import pandas as pd
from tiny import Readable, make_data

from kdlab.distillers import SoftTargets
from kdlab.training import Setting, study

DATA = make_data(50)
SETTINGS = {"labels": None, "soft": SoftTargets(), "cnn": Setting(student="cnn_tiny")}


def table(teacher: Readable) -> pd.DataFrame:
    """Students that one process would train stacked, and some that it would give to workers."""
    return study(
        "mlp", DATA, SETTINGS, seeds=2, teacher=teacher, epochs=2, batch_size=15, device="cpu"
    )


def main(folder: Path) -> None:
    try:
        study("cnn_tiny", DATA, {"labels": None}, workers=2, device="cpu")
    except ValueError as error:
        refusal = str(error)
    vars(sys.modules["kdlab.training.study"])["fit_stacked"] = None  # ranks share each run
    teacher = Readable(DATA)
    results = table(teacher).assign(asked=teacher.images, refusal=refusal)
    results.to_json(folder / f"{os.environ['RANK']}.json", double_precision=15)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
