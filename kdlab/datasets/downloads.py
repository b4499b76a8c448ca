"""Fashion-MNIST, CIFAR-10 and CIFAR-100, fetched once and then read from a cache folder.

A file counts as present only when its SHA-256 is right, so a damaged one is fetched again. A broken
download goes on where it stopped; the finished file appears in one step; a lock lets two kernels
share the folder. The binary and idx forms are read, never a pickle.
"""

import gzip
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import pooch
from filelock import FileLock, Timeout
from tqdm import tqdm

from kdlab.datasets.arrays import from_arrays
from kdlab.datasets.data import Data
from kdlab.files import cache_folder

_ATTEMPTS = 5
_BLOCK = 1 << 18  # bytes read at once
_TIMEOUT = 30  # seconds without a byte

_WAY_OUT = "or work offline with 'glyphs', 'digits' or your own .npz or image folder"


@dataclass(frozen=True)
class Remote:
    """A file at its home, and the SHA-256 of its right content."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        """The file's name in the cache."""
        return self.url.rsplit("/", 1)[-1]


# Fashion-MNIST's authors publish MD5 sums (in their README), CIFAR's author too (on the page
# cs.toronto.edu/~kriz/cifar.html). The SHA-256 sums of the same files, which cannot be forged, are
# those that TensorFlow Datasets and MLDatasets.jl check.
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
REMOTES = {
    "fashion_x_train": Remote(
        f"{_FASHION}/train-images-idx3-ubyte.gz",
        "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    ),
    "fashion_y_train": Remote(
        f"{_FASHION}/train-labels-idx1-ubyte.gz",
        "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    ),
    "fashion_x_test": Remote(
        f"{_FASHION}/t10k-images-idx3-ubyte.gz",
        "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    ),
    "fashion_y_test": Remote(
        f"{_FASHION}/t10k-labels-idx1-ubyte.gz",
        "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    ),
    "cifar10": Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    ),
    "cifar100": Remote(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
}

_FASHION_CLASSES = (
    "T-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
_FASHION_CARD = {
    "source": "H. Xiao, K. Rasul, R. Vollgraf, Fashion-MNIST, 2017, arXiv:1708.07747",
    "licence": "MIT",
    "how": "idx files of the authors",
}
_CIFAR_CARD = {
    "source": "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    "licence": "none stated by the author, who asks to cite the report",
    "how": "the author's binary version",
}


def load(
    name: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    n_train: int | None = None,
    n_val: int | None = None,
    n_test: int | None = None,
) -> Data:
    """Load ``fashion_mnist`` (28×28, grey), ``cifar10`` or ``cifar100`` (32×32, colour).

    Raises ConnectionError and PermissionError as ``fetch``.
    """
    read, card = READERS[name]
    return from_arrays(
        **read(),
        val_fraction=val_fraction,
        seed=seed,
        n_train=n_train,
        n_val=n_val,
        n_test=n_test,
        name=name,
        card=card,
    )


def files_of(name: str) -> list[Path]:
    """Return where the cache has, or would have, the files of a data set; [] if none is fetched."""
    # one set may come in several files: fashion_x_train, fashion_y_train, ...
    family = name.split("_")[0]
    remotes = [remote for key, remote in REMOTES.items() if key.split("_")[0] == family]
    return [cache_folder() / remote.name for remote in remotes]


def fetch(remote: Remote) -> Path:
    """The file in the cache, fetched first where it is missing or damaged.

    Raises ConnectionError (no network, or the server sends something else) and PermissionError
    (the cache folder cannot be written), each with what to do.
    """
    folder = cache_folder()
    path = folder / remote.name
    if _is_whole(path, remote):  # before the lock: a read-only cache may well be complete
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder, remote.name):
            return _retrieve(remote, folder)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        state = "is damaged" if path.exists() else "is not there yet"
        raise PermissionError(
            f"{remote.name} {state}, and the cache folder {folder} cannot be written ({error}): "
            f"set KDLAB_DATA_DIR to a folder of your own, {_WAY_OUT}"
        ) from error


def _retrieve(remote: Remote, folder: Path) -> Path:
    for last in (False, True):
        try:
            return Path(
                pooch.retrieve(remote.url, remote.sha256, remote.name, folder, downloader=_resume)
            )
        except ValueError as error:  # pooch's word for a wrong hash; the bytes are gone by now
            if last:
                raise ConnectionError(
                    f"{remote.url} sent twice something else than the published file: a proxy or a "
                    f"login page may stand between. Try again from another network, {_WAY_OUT}"
                ) from error
    raise AssertionError("unreachable")


def _resume(url: str, output_file: str, _: Any) -> None:
    """A downloader for pooch that keeps what it got and goes on from there."""
    output = Path(output_file)
    part = output.parent / (url.rsplit("/", 1)[-1] + ".part")
    reason: object = None
    for attempt in range(_ATTEMPTS):
        time.sleep(min(attempt, 3) * 0.5)
        try:
            if _fetch_rest(url, part):
                part.replace(output)
                return
            reason = "the connection broke"
        except urllib.error.HTTPError as error:
            reason = error
            if error.code == 416:  # our part is no beginning of theirs
                part.unlink(missing_ok=True)
            elif error.code < 500:
                break
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            reason = error
            if not part.exists() and attempt:  # two tries without a byte: there is no network
                break
    kept = f"{part.stat().st_size:,} bytes are kept" if part.exists() else "nothing came"
    raise ConnectionError(
        f"could not fetch {url} ({reason}; {kept}): call again with a network to go on, "
        f"put the file into {output.parent} by hand, {_WAY_OUT}"
    )


def _fetch_rest(url: str, part: Path) -> bool:
    """Append what ``part`` lacks; True when the server has no more to give."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        goes_on = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )
        have = have if goes_on else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if goes_on else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True) as bar,
        ):
            while block := response.read(_BLOCK):
                file.write(block)
                bar.update(len(block))
    return total is None or part.stat().st_size >= total


def _lock(folder: Path, name: str) -> Any:
    lock = FileLock(folder / f"{name}.lock")  # the system frees it when its holder dies
    try:
        return lock.acquire(timeout=1)
    except Timeout:
        print(f"{name}: another kernel is fetching it; waiting", file=sys.stderr)
        return lock.acquire()


def _is_whole(path: Path, remote: Remote) -> bool:
    return path.is_file() and pooch.file_hash(str(path)) == remote.sha256


def _read_idx(path: Path) -> np.ndarray:
    """The idx form: two zero bytes, a type, the number of axes, their lengths, the values."""
    raw = gzip.decompress(path.read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">u4", axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _read_fashion_mnist() -> dict[str, Any]:
    parts = ("x_train", "y_train", "x_test", "y_test")
    arrays: dict[str, Any] = {key: _read_idx(fetch(REMOTES[f"fashion_{key}"])) for key in parts}
    return {**arrays, "classes": _FASHION_CLASSES}


def _read_cifar(name: str, label_byte: int, names_file: str) -> dict[str, Any]:
    """Records of one (CIFAR-10) or two (CIFAR-100) label bytes and 3,072 of red, green, blue."""
    members: dict[str, bytes] = {}
    with tarfile.open(fetch(REMOTES[name]), "r:gz") as archive:  # read in place, never unpacked
        for member in archive:
            if member.isfile() and (file := archive.extractfile(member)):
                members[member.name.rsplit("/", 1)[-1]] = file.read()
    arrays: dict[str, Any] = {"classes": members[names_file].decode().split()}
    for part, beginnings in (("train", ("train", "data_batch")), ("test", ("test",))):
        keys = sorted(k for k in members if k.startswith(beginnings) and k.endswith(".bin"))
        raw = np.frombuffer(b"".join(members[key] for key in keys), np.uint8)
        records = raw.reshape(-1, label_byte + 1 + 3 * 32 * 32)
        arrays[f"y_{part}"] = records[:, label_byte]
        pixels = records[:, label_byte + 1 :].reshape(-1, 3, 32, 32)
        arrays[f"x_{part}"] = pixels.transpose(0, 2, 3, 1)
    return arrays


READERS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, str]]] = {
    "fashion_mnist": (_read_fashion_mnist, _FASHION_CARD),
    "cifar10": (partial(_read_cifar, "cifar10", 0, "batches.meta.txt"), _CIFAR_CARD),
    "cifar100": (partial(_read_cifar, "cifar100", 1, "fine_label_names.txt"), _CIFAR_CARD),
}
