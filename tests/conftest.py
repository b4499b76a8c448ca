"""How the tests are dealt out to processes (pytest-xdist): the long ones first."""

import pytest

LONG = ("browser", "notebook")


def pytest_collection_modifyitems(items):
    """One process for all that shares a kernel, a server or a file; a whole lesson by itself."""
    for item in items:
        group = item.nodeid if item.get_closest_marker("notebook") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not _is_long(item))


def _is_long(item):
    return item.path.suffix == ".ipynb" or any(item.get_closest_marker(name) for name in LONG)
