"""Files: atomic writes, files that strangers wrote, the folder for what can be made again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

DATA = "dataset"  # the parameter that may be a path without looking like one


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


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return what a JSON file holds, whoever wrote it: only values that can be worked with.

    NaN and infinities are None, whole numbers beyond 64 bits are floats, halves of characters are
    replaced.

    Raises:
        ValueError: no file of bytes (a pipe, a device), no UTF-8, no JSON, or nested too deeply.
        OSError: the file cannot be read.
    """
    if not stat.S_ISREG(Path(path).stat().st_mode):
        raise ValueError(f"{path} is no regular file")
    text = Path(path).read_text(encoding="utf-8-sig")
    try:
        found = json.loads(
            text,
            parse_float=_finite,
            parse_int=lambda digits: int(digits) if len(digits) < 19 else _finite(digits),
            parse_constant=lambda name: None,
        )
        if "\\ud" in text.lower():
            whole = json.dumps(found, ensure_ascii=False).encode("utf-16", "surrogatepass")
            found = json.loads(whole.decode("utf-16", "replace"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    return found


def safe_name(text: str, longest: int = 120) -> str:
    """Return a text as part of a file's name; what would fall together is told apart by a hash."""
    plain = re.sub(r"[^\w.\-]+", "_", text)
    if plain == text and len(plain) <= longest and plain.strip("."):
        return plain
    return f"{plain[: longest - 9].strip('.')}-{short_hash(text, 8)}"


def short_hash(value: Any, digits: int = 12) -> str:
    """Return a short hash of anything that JSON can hold, or else of its ``repr``."""
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:digits]


def contents_of(values: Mapping[str, Any], content: Callable[[str], str]) -> dict[str, str]:
    """Return what lies at the paths among the parameters of a run: path → digest.

    Args:
        values: all parameters.
        content: gives the digest of what lies at a path, "" for nothing.
    """
    given = values.items()
    texts = [(n, t) for n, v in given for t in (v if isinstance(v, list | tuple) else [v])]
    paths = [t for n, t in texts if isinstance(t, str) and (n == DATA or looks_like_path(t))]
    return {text: found for text in dict.fromkeys(paths) if (found := content(text))}


def looks_like_path(text: str) -> bool:
    """Say whether a text is a path and no name: it has a slash, or an ending."""
    return bool({"/", "\\"} & set(text)) or bool(PurePath(text).suffix)


def content_of(folder: Path, text: str) -> str:
    """Return a digest of the file, or of all files in the folder, that a text names; "" if none."""
    try:
        path = folder / Path(text).expanduser()
        files = [path] if path.is_file() else sorted(filter(Path.is_file, path.rglob("*")))
        stats = [(file, file.stat()) for file in files]
        names = [(f.relative_to(path), _digest_of(f, s.st_size, s.st_mtime_ns)) for f, s in stats]
        return short_hash([(name.as_posix(), found) for name, found in names]) if names else ""
    except (OSError, ValueError, RuntimeError):
        return ""


@functools.lru_cache(maxsize=100_000)
def _digest_of(file: Path, size: int, time: int) -> str:
    """Return the digest of a file; it is read again when its size or time has changed."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _finite(digits: str) -> float | None:
    return number if math.isfinite(number := float(digits)) else None


def project_folder() -> Path | None:
    """Return the checkout that holds this package, or None when it is installed elsewhere."""
    root = Path(__file__).resolve().parent.parent
    return root if (root / "data" / "teachers").is_dir() else None


def cache_folder() -> Path:
    """Return the folder for downloads and for all that can be made again (it may not exist yet).

    ``KDLAB_DATA_DIR`` if set; else ``data/cache`` of the checkout; else ``~/.cache/kdlab``, or a
    folder for temporary files where there is no home, or none that can be read.
    """
    if chosen := os.environ.get("KDLAB_DATA_DIR"):
        with contextlib.suppress(RuntimeError):  # nobody's home
            return Path(chosen).expanduser()
        return Path(chosen)
    if (root := project_folder()) and os.access(root / "data", os.W_OK):
        return root / "data" / "cache"
    try:
        home = Path.home()
        (home / ".cache" / "kdlab").exists()
    except (RuntimeError, OSError):
        home = Path(tempfile.gettempdir()) / f"home-{getattr(os, 'getuid', int)()}"
    return home / ".cache" / "kdlab"
