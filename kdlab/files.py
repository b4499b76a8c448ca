"""Files that are whole or absent: atomic writes, and the folder for what can be made again."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there, flushed to disk, if no error came.

    A process killed at any moment leaves either the old file or the new one.

    Raises:
        OSError: the folder cannot be written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes only what it may write
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def project_folder() -> Path | None:
    """Return the checkout that holds this package, or None when it is installed elsewhere."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "data" / "teachers").is_dir() else None


def cache_folder() -> Path:
    """Return the folder for downloads and for all that can be made again (it may not exist yet).

    ``KDLAB_DATA_DIR`` if set; else ``data/cache`` of the checkout; else ``~/.cache/kdlab``.
    """
    if chosen := os.environ.get("KDLAB_DATA_DIR"):
        return Path(chosen).expanduser()
    if (root := project_folder()) and os.access(root / "data", os.W_OK):
        return root / "data" / "cache"
    return Path.home() / ".cache" / "kdlab"
