"""Distillation methods, one per file. A new method is a new file here, and nothing else changes."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from types import ModuleType

from kdlab.distillers.base import Distiller, Outputs, Sum
from kdlab.words import check_known

__all__ = ["Distiller", "Outputs", "Sum", "available", "build", "contestants"]


def available(task: str | None = None) -> dict[str, type[Distiller]]:
    """Return every method by the name of its file, found by looking into this folder.

    With a ``task`` ("classes", "labels" or "values") only those that can learn it.

    A file has one class derived from ``Distiller``, or none if it only helps. A class without a
    ``forward`` from which others derive is what these have in common, and no method itself.

    Raises:
        ImportError: a file with several methods, of which only one could have its name.
    """
    names = [module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"]
    modules = {name: importlib.import_module(f"{__name__}.{name}") for name in names}
    found: dict[str, type[Distiller]] = {}
    for name, module in modules.items():
        methods = list({member for member in vars(module).values() if _is_method(member, module)})
        if len(methods) > 1:
            raise ImportError(
                f"{module.__file__}: {len(methods)} methods in it, "
                f"{' and '.join(sorted(method.__name__ for method in methods))}, expected one; "
                "move each into a file of its own, which gives it its name"
            )
        if methods:
            found[name] = methods[0]
    return {n: method for n, method in found.items() if task is None or task in method.tasks}


def _is_method(member: object, module: ModuleType) -> bool:
    if not (isinstance(member, type) and issubclass(member, Distiller)):
        return False
    is_base = member.forward is Distiller.forward and bool(member.__subclasses__())
    return member.__module__ == module.__name__ and not is_base


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


def __dir__() -> list[str]:
    """Name the methods too, which are imported when they are asked for: for completion."""
    return sorted({*globals(), *(method.__name__ for method in available().values())})
