"""What is flushed to disk, and what is not."""

import errno
import os

import pytest

from sparseopt_jax.files.atomic_file import written_whole
from sparseopt_jax.files.flush import flush_folder, flush_tree, make_folder
from tests.helpers.flushes import Disk


def flushed(disk, root):
    return [os.path.relpath(path, root) for _, path in disk.events]


def test_a_tree_is_flushed_from_its_leaves_up(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x").write_text("x")
    (tmp_path / "y").write_text("y")
    disk = Disk(monkeypatch)
    flush_tree(tmp_path)
    assert flushed(disk, tmp_path) == ["a/b/x", "a/b", "a", "y", "."]


def test_a_new_folder_is_there_with_those_above_it(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert flushed(disk, tmp_path) == ["a", "."]
    make_folder(tmp_path / "a" / "b")
    assert len(disk.events) == 2


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_file_is_flushed_before_it_has_its_name_and_its_name_after_that(
    overwrite, tmp_path, monkeypatch
):
    disk = Disk(monkeypatch)
    path = str(tmp_path / "a")
    with written_whole(path, overwrite) as file:
        file.write(b"one")
    (_, temporary), (*_, new), (_, folder) = disk.events
    assert os.path.dirname(temporary) == str(tmp_path) and temporary != path
    assert new == path and disk.unflushed == {path: []}
    assert folder == str(tmp_path)


def failing(number):
    def fsync(descriptor):
        raise OSError(number, os.strerror(number))

    return fsync


def test_folders_that_cannot_be_flushed_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EINVAL))
    flush_folder(tmp_path)


def test_a_disk_that_fails_is_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        flush_folder(tmp_path)
    (tmp_path / "x").write_text("x")
    with pytest.raises(OSError, match="Input/output error"):
        flush_tree(tmp_path)
