"""Downloads, against a server on this machine that cuts, lies and forgets on demand."""

import gzip
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from kdlab.datasets import downloads, load
from kdlab.datasets.downloads import Remote, fetch

PAYLOAD = np.random.default_rng(0).bytes(700_000)


class Server(ThreadingHTTPServer):
    """Serves ``files``; ``faults`` are used up one per request."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/blob.bin": PAYLOAD}
        self.faults: list[str] = []
        self.ranges = True
        self.go_on = threading.Event()
        self.log: list[tuple[str, str | None, int]] = []

    def remote(self, name: str = "blob.bin") -> Remote:
        url = f"http://127.0.0.1:{self.server_port}/{name}"
        return Remote(url, hashlib.sha256(self.files[f"/{name}"]).hexdigest())


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        fault = self.server.faults.pop(0) if self.server.faults else ""
        asked = self.headers.get("Range")
        start = int(re.findall(r"\d+", asked)[0]) if asked and self.server.ranges else 0
        body = self.server.files.get(self.path)
        status = 404 if body is None else 416 if start >= len(body) else 206 if start else 200
        status = int(fault) if fault.isdigit() else status
        body = b"" if status >= 400 or body is None else body
        if fault == "wrong":
            body = b"\0" * len(body)
        rest = body[start:]
        self.server.log.append((self.path, asked, status))
        self.send_response(status)
        self.send_header("Content-Length", str(len(rest)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        self.wfile.write(rest[: len(rest) // 2] if fault in ("cut", "stall") else rest)
        if fault == "stall":
            self.server.go_on.wait(60)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Keep the tests' output clean."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads.time, "sleep", lambda _: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def content(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if p.suffix != ".lock"}


def test_fetched_once(server, cache):
    path = fetch(server.remote())
    assert path == cache / "blob.bin" and path.read_bytes() == PAYLOAD
    assert fetch(server.remote()) == path
    assert len(server.log) == 1 and content(cache) == {"blob.bin"}


def test_a_cut_connection_goes_on_where_it_stopped(server):
    server.faults = ["cut", "cut"]
    assert fetch(server.remote()).read_bytes() == PAYLOAD
    assert [asked for _, asked, _ in server.log] == [None, "bytes=350000-", "bytes=525000-"]


def test_a_later_call_goes_on_too(server, cache):
    cache.mkdir()
    (cache / "blob.bin.part").write_bytes(PAYLOAD[:600_000])  # as after kill -9
    assert fetch(server.remote()).read_bytes() == PAYLOAD
    assert server.log == [("/blob.bin", "bytes=600000-", 206)] and content(cache) == {"blob.bin"}


def test_a_server_without_ranges_starts_over(server):
    server.ranges, server.faults = False, ["cut"]
    assert fetch(server.remote()).read_bytes() == PAYLOAD
    assert [status for *_, status in server.log] == [200, 200]


@pytest.mark.parametrize("part", [b"\0" * 1000, PAYLOAD + b"more", PAYLOAD])
def test_a_part_that_is_no_beginning_is_dropped(server, cache, part):
    cache.mkdir()
    (cache / "blob.bin.part").write_bytes(part)
    assert fetch(server.remote()).read_bytes() == PAYLOAD
    assert content(cache) == {"blob.bin"}


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_found_and_fetched_again(server, cache, damage):
    path = fetch(server.remote())
    raw = bytearray(PAYLOAD)
    raw[5] ^= 1
    path.write_bytes({"truncated": PAYLOAD[:-1], "flipped": bytes(raw), "empty": b""}[damage])
    assert fetch(server.remote()).read_bytes() == PAYLOAD
    assert len(server.log) == 2


def test_wrong_bytes_once_and_always(server, cache):
    server.faults = ["wrong"]
    assert fetch(server.remote()).read_bytes() == PAYLOAD
    (cache / "blob.bin").unlink()
    server.faults = ["wrong"] * 9
    with pytest.raises(ConnectionError, match=r"something else than the published file.*glyphs"):
        fetch(server.remote())
    assert content(cache) == set()  # nothing wrong stays


def test_an_unsteady_server_is_asked_again_and_a_missing_file_is_not(server):
    server.faults = ["503", "503"]
    assert fetch(server.remote()).read_bytes() == PAYLOAD
    missing = Remote(server.remote().url + "x", "0" * 64)
    before = len(server.log)
    with pytest.raises(ConnectionError, match="404"):
        fetch(missing)
    assert len(server.log) == before + 1


def test_it_gives_up_but_keeps_what_came(server, cache):
    server.faults = ["cut"] * 9
    with pytest.raises(ConnectionError, match=r"the connection broke; 678,125 bytes are kept"):
        fetch(server.remote())
    assert (cache / "blob.bin.part").stat().st_size == 678_125
    assert not (cache / "blob.bin").exists()


def test_no_network_says_what_to_do(monkeypatch, cache):
    with socket.socket() as free:  # a port at which nobody listens
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    remote = Remote(f"http://127.0.0.1:{port}/cifar.tar.gz", "0" * 64)
    monkeypatch.setitem(downloads.REMOTES, "cifar10", remote)
    with pytest.raises(ConnectionError) as caught:
        load("cifar10")
    for words in (remote.url, "call again with a network", str(cache), "'glyphs'", "'digits'"):
        assert words in str(caught.value)


def test_a_cache_that_cannot_be_made(server, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    for place in ("file", "file/below"):
        monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path / place))
        with pytest.raises(PermissionError, match=r"is not there yet.*KDLAB_DATA_DIR.*glyphs"):
            fetch(server.remote())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX permissions")
def test_a_read_only_cache(server):
    """A complete one serves; an incomplete one is explained. Root may write all: not as root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "blob.bin").write_bytes(PAYLOAD)
        folder.chmod(0o555)
        os.environ["KDLAB_DATA_DIR"] = name  # undone by the fixture
        server.files["/other.bin"] = b"other"
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                whole = fetch(server.remote()).name
                try:
                    fetch(server.remote("other.bin"))
                except PermissionError as error:
                    os.write(write, f"{whole}: {error}".encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with os.fdopen(read) as answer:
            message = answer.read()
        folder.chmod(0o755)
    assert re.match(r"blob\.bin: other\.bin is not there yet, .*set KDLAB_DATA_DIR", message)


FETCH = """
import sys
from kdlab.datasets.downloads import Remote, fetch
print(fetch(Remote(*sys.argv[1:])))
"""


def start_fetching(remote: Remote) -> subprocess.Popen:
    command = [sys.executable, "-c", FETCH, remote.url, remote.sha256]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_fill_one_cache(server, cache):
    with downloads._lock(cache_made(cache), "blob.bin"):
        both = [start_fetching(server.remote()) for _ in range(2)]
        for process in both:  # let go only when both stand at the door
            assert "another kernel is fetching it" in process.stderr.readline()
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and out.strip() == str(cache / "blob.bin")
    assert (cache / "blob.bin").read_bytes() == PAYLOAD
    assert len(server.log) == 1  # the second found the first one's file


def test_kill_in_mid_download(server, cache):
    server.faults = ["stall"]
    process = start_fetching(server.remote())
    part = cache / "blob.bin.part"
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    process.kill()
    process.communicate()
    server.go_on.set()
    have = part.stat().st_size
    assert 0 < have < len(PAYLOAD) and not (cache / "blob.bin").exists()
    assert fetch(server.remote()).read_bytes() == PAYLOAD
    assert server.log[-1] == ("/blob.bin", f"bytes={have}-", 206)


def test_the_second_kernel_says_that_it_waits(server, cache, capsys):
    lock = downloads._lock(cache_made(cache), "blob.bin")
    done = threading.Thread(target=fetch, args=(server.remote(),))
    done.start()
    done.join(1.6)
    assert done.is_alive() and not server.log
    lock.lock.release()
    done.join(30)
    assert len(server.log) == 1 and "another kernel is fetching it" in capsys.readouterr().err


def cache_made(cache: Path) -> Path:
    cache.mkdir(exist_ok=True)
    return cache


def archive(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, raw in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            tar.addfile(info, io.BytesIO(raw))
    return buffer.getvalue()


def serve(server: Server, monkeypatch, key: str, name: str, raw: bytes) -> None:
    server.files[f"/{name}"] = raw
    monkeypatch.setitem(downloads.REMOTES, key, server.remote(name))


def test_cifar10_is_read_as_its_author_wrote_it(server, monkeypatch):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
    labels = np.arange(24) % 10
    records = [
        bytes([label]) + b"".join(image[..., c].tobytes() for c in range(3))
        for image, label in zip(images, labels, strict=True)
    ]
    members = {
        f"cifar-10-batches-bin/data_batch_{i}.bin": b"".join(records[4 * i - 4 : 4 * i])
        for i in (3, 1, 2, 5, 4)
    }
    members["cifar-10-batches-bin/test_batch.bin"] = b"".join(records[20:])
    members["cifar-10-batches-bin/batches.meta.txt"] = "\n".join("abcdefghij").encode() + b"\n\n"
    members["../evil.bin"] = b"never unpacked"
    serve(server, monkeypatch, "cifar10", "c10.tar.gz", archive(members))
    data = load("cifar10", val_fraction=0.2)
    assert data.classes == tuple("abcdefghij") and data.name == "cifar10"
    np.testing.assert_allclose(data.image(data.test.x), images[20:] / 255, atol=1e-6)
    assert data.test.y.tolist() == [0, 1, 2, 3]
    seen = {i.tobytes(): y for i, y in zip(images, labels, strict=True)}
    for split in (data.train, data.val):
        pixels = np.rint(data.image(split.x) * 255).astype(np.uint8)
        assert [seen[p.tobytes()] for p in pixels] == split.y.tolist()
    assert len(data.train) + len(data.val) == 20


def test_cifar100_has_the_fine_label_second(server, monkeypatch):
    records = [bytes([19, fine]) + bytes([fine]) * 3072 for fine in range(100)]
    members = {
        "cifar-100-binary/train.bin": b"".join(records),
        "cifar-100-binary/test.bin": b"".join(records[90:]),
        "cifar-100-binary/coarse_label_names.txt": b"wrong\n",
        "cifar-100-binary/fine_label_names.txt": "\n".join(map(str, range(100))).encode(),
    }
    serve(server, monkeypatch, "cifar100", "c100.tar.gz", archive(members))
    data = load("cifar100", n_test=5)
    assert data.num_classes == 100 and len(data.test) == 5
    values = np.rint(data.image(data.train.x)[:, 0, 0, 0] * 255)
    np.testing.assert_array_equal(values, data.train.y)


def test_fashion_mnist_is_read_from_idx(server, monkeypatch):
    x = np.random.default_rng(2).integers(0, 256, (30, 28, 28), np.uint8)
    y = (np.arange(30) % 10).astype(np.uint8)
    for part, keep in (("train", slice(20)), ("test", slice(20, 30))):
        n = len(y[keep])
        head = bytes([0, 0, 8, 3]) + np.array([n, 28, 28], ">u4").tobytes()
        raw = gzip.compress(head + x[keep].tobytes())
        serve(server, monkeypatch, f"fashion_x_{part}", f"x_{part}.gz", raw)
        head = bytes([0, 0, 8, 1]) + np.array([n], ">u4").tobytes()
        raw = gzip.compress(head + y[keep].tobytes())
        serve(server, monkeypatch, f"fashion_y_{part}", f"y_{part}.gz", raw)
    data = load("fashion_mnist")
    assert data.shape == (1, 28, 28) and data.classes[9] == "ankle boot"
    np.testing.assert_allclose(data.image(data.test.x), x[20:] / 255, atol=1e-6)
    assert data.test.y.tolist() == list(range(10)) and len(data.train) + len(data.val) == 20


def test_the_published_table_is_well_formed():
    for remote in downloads.REMOTES.values():
        assert re.fullmatch(r"[0-9a-f]{64}", remote.sha256) and remote.url.endswith(".gz")
    assert len({r.name for r in downloads.REMOTES.values()}) == len(downloads.REMOTES) == 6
