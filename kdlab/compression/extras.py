"""Packages that compression needs and the rest of the course does not."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

TALKATIVE = ("root", "torch.onnx", "torch.export", "torch.utils._pytree", "onnxscript", "torchao")


def need(module: str) -> Any:
    """Import a module of the extra ``compression``.

    Raises:
        ImportError: it is not installed; the message says what to do.
    """
    try:
        with quiet():
            return import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{module} cannot be imported ({error}); it comes with the extra `compression`: "
            "pip install -c requirements.lock -e '.[compression]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """For a while, nothing is printed of what concerns these packages' own authors."""
    loggers = [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
