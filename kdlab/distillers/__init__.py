"""Distillation methods, one per file. A new method is a new file here, and nothing else changes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

from kdlab.distillers.base import Distiller, Outputs, Sum
from kdlab.words import check_known

__all__ = ["Distiller", "Outputs", "Sum", "available", "build", "contestants"]


def available() -> dict[str, type[Distiller]]:
    """Return every method by the name of its file, found by looking into this folder.

    A class without a ``forward`` of its own is what methods have in common, and none itself.
    """
    found: dict[str, type[Distiller]] = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        for _, member in inspect.getmembers(module, inspect.isclass):
            own = member.__module__ == module.__name__ and module_info.name != "base"
            if own and issubclass(member, Distiller) and "forward" in vars(member):
                found[module_info.name] = member
    return found


def contestants(*, complete: bool) -> dict[str, type[Distiller]]:
    """Return the methods of the stored comparisons, which train any pair of image models.

    Args:
        complete: True for those of lesson 01, which train the student's classifier; False for those
            that look inside and are added to one of them: lessons 02 and 03.
    """
    return {
        name: method
        for name, method in available().items()
        if method.in_tournament and method.complete == complete
    }


def build(name: str, **options: object) -> Distiller:
    """Return the method called ``name`` with its options.

    Raises:
        ValueError: an unknown name, or an option that the method does not have.
    """
    known = available()
    check_known("method", name, known)
    allowed = list(inspect.signature(known[name]).parameters)
    for option in options:
        check_known("option", option, allowed, f" of {name}")
    return known[name](**options)


def __getattr__(name: str) -> type[Distiller]:
    for method in available().values():
        if method.__name__ == name:
            return method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
