"""Packages that compression needs and the rest of the course does not."""

from importlib import import_module
from typing import Any


def need(module: str) -> Any:
    """Import a module of the extra ``compression``.

    Raises:
        ImportError: it is not installed; the message says what to do.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}); it comes with the extra `compression`: "
            "pip install -c requirements.lock -e '.[compression]'"
        ) from error
