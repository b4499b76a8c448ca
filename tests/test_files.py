"""Files that are whole or absent, and where they live."""

import os
import stat
from pathlib import Path

import pytest

from kdlab import files
from kdlab.files import atomic_write, cache_folder, project_folder


def test_it_writes_into_folders_that_do_not_exist_yet(tmp_path):
    path = tmp_path / "a" / "b" / "file.txt"
    with atomic_write(path) as temporary:
        assert temporary.parent == path.parent and not path.exists()
        temporary.write_text("new")
    assert path.read_text() == "new" and len(list(path.parent.iterdir())) == 1


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with atomic_write(str(path)) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_no_rubbish(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_it_is_flushed_before_it_is_moved(tmp_path, monkeypatch):
    calls = []
    flush, move = os.fsync, Path.replace

    def flushed(number):
        assert os.fstat(number).st_size == 3
        calls.append("flush")
        os.write(number, b"")  # must be open for writing, or Windows does not flush it
        flush(number)

    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", lambda a, b: calls.append("move") or move(a, b))
    with atomic_write(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert calls == ["flush", "move"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_others_may_read_it(tmp_path):
    with atomic_write(tmp_path / "file.txt") as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o644


def test_a_folder_that_cannot_be_is_an_oserror(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError), atomic_write(tmp_path / "file" / "x"):
        raise AssertionError("never reached")


def test_the_project_is_a_checkout_with_teachers(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "__file__", str(tmp_path / "kdlab" / "files.py"))
    assert project_folder() is None
    (tmp_path / "data" / "teachers").mkdir(parents=True)
    assert project_folder() == tmp_path


def test_where_the_cache_lives(tmp_path, monkeypatch):
    monkeypatch.setenv("KDLAB_DATA_DIR", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine" and not cache_folder().exists()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.setenv("KDLAB_DATA_DIR", "~/mine")
    assert cache_folder() == tmp_path / "home" / "mine"
    monkeypatch.delenv("KDLAB_DATA_DIR")
    monkeypatch.setattr(files, "project_folder", lambda: tmp_path)
    (tmp_path / "data").mkdir()
    assert cache_folder() == tmp_path / "data" / "cache"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert cache_folder() == tmp_path / "home" / ".cache" / "kdlab"
    monkeypatch.setattr(files, "project_folder", lambda: None)
    assert cache_folder() == tmp_path / "home" / ".cache" / "kdlab"
