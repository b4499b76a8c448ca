"""Your own images: a folder of pictures, one subfolder per class."""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from kdlab.datasets.account import accounted, natural, readable_name
from kdlab.datasets.arrays import from_arrays
from kdlab.datasets.data import Data, in_stratified_order

_AVIF = features.check("avif")
_SUFFIXES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm"),
    *((".avif",) if _AVIF else ()),
}
# of an EPS it runs Ghostscript
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM", *(("AVIF",) if _AVIF else ()))
_UNREAD = {".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".tga", ".psd", ".raw", ".cr2"}
_SYSTEM = {"__macosx", "@eadir", "__pycache__", "$recycle.bin", "thumbs.db", "desktop.ini"}
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_LARGEST_WITHOUT_ASKING = 256  # pixels a side: beyond it, photographs would fill the memory
_USUAL = 32  # a side, where pictures are larger, or of several sizes
_PIXELS = 100_000_000  # of one picture

File = tuple[Path, int]
"""A picture and its class."""


def load_folder(
    path: Path,
    *,
    seed: int = 0,
    size: int | tuple[int, int] | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
) -> Data:
    """Read ``train/<class>/*.png`` and, where present, ``test/``, ``val/``; or just ``<class>/``.

    Pictures may lie in folders within their class. ``valid/`` and ``validation/`` are ``val/``.
    A folder is one of these splits only if classes with pictures lie in it: else it is a class.
    Classes are in natural order, 2 before 10. What is no picture, or of a format that cannot be
    read, is left out and counted by reason in ``card["left_out"]``.

    Without a test folder, ``test_fraction`` of the images becomes the test split, the same for
    every seed. ``size`` (a side, or height and width, in pixels) cuts the middle out and resizes.
    Without it, pictures of one size, up to 256 a side, stay as they are; others become 32 × 32,
    and ``card["line"]`` says so. Pictures of 16 bits stay so, if all are.

    Raises ValueError that names the folder or the picture: no classes, a class that training has
    not or of which no picture can be read, a picture that is damaged or of over 100 megapixels.
    """
    target = (size, size) if isinstance(size, int) else size
    if target is not None and (len(target) != 2 or min(target) < 1):
        raise ValueError(f"size must be a side or (height, width) in pixels, got {size}")
    left_out: Counter[str] = Counter()
    splits = _splits(path, left_out)
    names = _classes(splits["train"], left_out)
    if not names:
        raise ValueError(_without_classes(path))
    parts = {part: _files(folder, names, left_out) for part, folder in splits.items()}
    if "test" not in parts:
        if not 0 < test_fraction < 1:
            raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
        files = parts["train"]
        # One seed for good: another seed must never move a test image into training.
        order = in_stratified_order(np.array([label for _, label in files]), 0)
        n = max(1, round(len(files) * test_fraction))
        if n >= len(files):
            raise ValueError(
                f"{path} holds {len(files)} pictures: too few to set {n} aside for the test"
            )
        parts["test"] = [files[i] for i in order[:n]]
        parts["train"] = [files[i] for i in order[n:]]
    # looks at all of them, and at no more than their beginnings
    found = {file: _beginning(file) for files in parts.values() for file, _ in files}
    deep = {file for file, (mode, *_) in found.items() if mode.startswith(("I", "F"))}
    if deep and (len(deep) < len(found) or any(found[file][0].startswith("F") for file in deep)):
        file = min(deep)
        raise ValueError(f"{file} has more than 8 bits a channel; convert it to 8 bits")
    mode = "I;16" if deep else "RGB"
    if not deep and all(mode in ("1", "L", "LA") for mode, *_ in found.values()):
        mode = "L"
    moving = sum(several for *_, several in found.values())
    notes = [f"{moving} files of several pictures: the first of each"] if moving else []
    if target is None:
        sizes = {size for _, size, _ in found.values()}
        target = next(iter(sizes))
        if len(sizes) > 1 or max(target) > _LARGEST_WITHOUT_ASKING:
            target = (_USUAL, _USUAL)
            notes.append(f"pictures of {len(sizes)} sizes became 32 × 32: say size=… for another")
    arrays: dict[str, Any] = {}
    for part, files in parts.items():
        arrays[f"x_{part}"] = np.stack([_picture(file, target, mode) for file, _ in files])
        arrays[f"y_{part}"] = np.array([label for _, label in files], np.int64)
    data = from_arrays(
        **arrays,
        classes=[shown for shown, _ in names],
        val_fraction=val_fraction,
        seed=seed,
        n_train=n_train,
        n_val=n_val,
        n_test=n_test,
        name=readable_name(path.resolve().name),
        card={
            "source": f"{readable_name(path.resolve().name)}/",
            "size": size if size is not None else list(target),
            "test_fraction": test_fraction,
        },
    )
    return accounted(data, left_out, *notes)


def _splits(path: Path, left_out: Counter[str]) -> dict[str, Path]:
    """The folders of the splits; the folder itself is for training where it has none."""
    folders = _subfolders(path)
    known: dict[str, Path] = {}
    others = []
    for folder in folders:
        part = _SPLITS.get(folder.name.lower())
        if part is None or not any(_has_pictures(inner) for inner in _subfolders(folder)):
            others.append(folder)
        elif part in known:
            raise ValueError(
                f"{path} has both {known[part].name}/ and {folder.name}/; expected one of them"
            )
        else:
            known[part] = folder
    filled = [folder for folder in others if _has_pictures(folder)]
    if "train" not in known:
        if known:
            raise ValueError(
                f"{path} has {', '.join(f.name for f in known.values())}/ with folders of classes, "
                "but no such train/; expected train/<class>/, or <class>/ alone"
            )
        _count_beside(path, left_out)
        return {"train": path}
    if filled:
        raise ValueError(
            f"{path} has pictures in {filled[0].name}/ beside {known['train'].name}/ with folders "
            "of classes; expected train/, val/ and test/ alone, or one folder for each class"
        )
    for folder in (path, *known.values()):
        _count_beside(folder, left_out)
    for folder in others:
        left_out["folders without pictures"] += 1
        _listed(folder, left_out)
    return known


def _classes(folder: Path, left_out: Counter[str]) -> list[tuple[str, str]]:
    """Names of the classes, as they are shown and as they are written, in natural order."""
    names: dict[str, str] = {}
    for inner in _subfolders(folder):
        splits = {f.name.lower() for f in _subfolders(inner) if _has_pictures(f)} & {*_SPLITS}
        if "train" in splits and len(splits) > 1:
            raise ValueError(
                f"{inner} has {', '.join(sorted(splits))} within the class; expected the splits "
                "outside: train/<class>/ and test/<class>/"
            )
        if not _has_pictures(inner):
            unread = sum(p.suffix.lower() in _UNREAD for p in inner.rglob("*"))
            if unread:
                raise ValueError(
                    f"{inner} has {unread} pictures, none of which can be read; expected "
                    f"{', '.join(sorted(_SUFFIXES))}: convert them, or remove the class"
                )
            left_out[f"folders without pictures ({readable_name(inner.name)})"] += 1
            continue
        shown = readable_name(inner.name)
        if shown in names:
            raise ValueError(f"{folder} has two folders whose name is read as {shown!r}; join them")
        names[shown] = inner.name
    return sorted(names.items(), key=lambda pair: natural(pair[0]))


def _files(folder: Path, names: list[tuple[str, str]], left_out: Counter[str]) -> list[File]:
    """The pictures of each class; what else lies there is counted."""
    labels = {shown: label for label, (shown, _) in enumerate(names)}
    found: list[File] = []
    for inner in _subfolders(folder):
        shown, pictures = readable_name(inner.name), _listed(inner, left_out)
        if pictures and shown not in labels:
            raise ValueError(f"{folder} has the class {shown!r}, which training has not")
        found += [(file, labels[shown]) for file in pictures]
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(_SUFFIXES))})")
    return sorted(found, key=lambda pair: (pair[1], str(pair[0])))


def _without_classes(path: Path) -> str:
    inner = [f.name for f in _subfolders(path)]
    empty = f"{path} holds no pictures ({', '.join(sorted(_SUFFIXES))})" if inner else ""
    return empty or f"{path} must hold folders train/<class>/ or <class>/ with pictures in them"


def _subfolders(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.is_dir() and not _is_system(p))


def _is_system(path: Path) -> bool:
    return path.name.startswith(".") or path.name.lower() in _SYSTEM


def _is_picture(folder: Path, file: Path) -> bool:
    """Whether it can be read; what lies in folders of a system are copies, or previews."""
    hidden = any(_is_system(Path(part)) for part in file.relative_to(folder).parts)
    return file.suffix.lower() in _SUFFIXES and file.is_file() and not hidden


def _has_pictures(folder: Path) -> bool:
    return any(_is_picture(folder, file) for file in folder.rglob("*"))


def _listed(folder: Path, left_out: Counter[str]) -> list[Path]:
    """The pictures in a folder and the folders within; all other files are counted."""
    pictures = []
    for file in sorted(folder.rglob("*")):
        if file.is_dir():
            continue
        if _is_picture(folder, file):
            pictures.append(file)
        elif any(_is_system(Path(part)) for part in file.relative_to(folder).parts):
            left_out["files of the system"] += 1
        else:
            left_out[f"files ({file.suffix.lower() or 'no ending'})"] += 1
    return pictures


def _count_beside(folder: Path, left_out: Counter[str]) -> None:
    """Count what lies in a folder outside of its classes."""
    for inner in folder.iterdir():
        if inner.is_dir():
            if _is_system(inner):
                left_out["files of the system"] += sum(not p.is_dir() for p in inner.rglob("*"))
        elif _is_picture(folder, inner):
            left_out["pictures beside the folders of the classes"] += 1
        elif _is_system(inner):
            left_out["files of the system"] += 1
        else:
            left_out[f"files ({inner.suffix.lower() or 'no ending'})"] += 1


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """A picture, of which no more is read than its beginning; what is wrong is a ValueError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > _PIXELS:
                    raise Image.DecompressionBombError(
                        f"{image.width} × {image.height} pixels, at most {_PIXELS:,} are read"
                    )
                yield image
    except (
        OSError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError, ValueError,
        MemoryError, UnidentifiedImageError, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        # what a damaged file makes its decoder raise is of any of these types
        raise ValueError(
            f"{readable_name(str(file))} is no whole picture ({error}); replace or remove it"
        ) from error


def _beginning(file: Path) -> tuple[str, tuple[int, int], bool]:
    """Mode, height and width as they are seen, and whether there are more pictures in the file."""
    with _opened(file) as image:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        size = image.size if turned else image.size[::-1]
        return image.mode, (size[0], size[1]), getattr(image, "n_frames", 1) > 1


def _picture(file: Path, target: tuple[int, int], mode: str) -> np.ndarray:
    size = target[::-1]
    with _opened(file) as opened:
        opened.draft(None, (max(size), max(size)))  # a large JPEG is read small
        image = ImageOps.exif_transpose(opened)
        if mode == "I;16":
            values = np.asarray(image)
            if values.min() < 0 or values.max() >= 2**16:
                raise ValueError(f"values from {values.min()} to {values.max()}, not of 16 bits")
            fitted = Image.fromarray(values.astype(np.float32))
            if image.size != size:
                fitted = ImageOps.fit(fitted, size, Image.Resampling.BILINEAR)
            return np.asarray(fitted).round().astype(np.uint16)
        if image.has_transparency_data:  # as on white paper
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert(mode)
    if image.size != size:
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return np.asarray(image)
