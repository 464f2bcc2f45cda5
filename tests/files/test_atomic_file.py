"""Files that are written completely or not at all."""

import errno
import os

import pytest

from sparseopt_jax.files.atomic_file import check_free, written_whole


def write(path, text, overwrite=False):
    with written_whole(str(path), overwrite) as file:
        file.write(text)


def test_a_file_is_there_once_it_is_complete(tmp_path):
    path = tmp_path / "a"
    with written_whole(str(path), False) as file:
        file.write(b"one")
        assert not path.exists()
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]
    write(path, b"two", overwrite=True)
    assert path.read_bytes() == b"two" and os.listdir(tmp_path) == ["a"]


def test_a_new_file_has_the_rights_of_any_other(tmp_path):
    write(tmp_path / "a", b"one")
    (tmp_path / "b").write_bytes(b"two")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("fails", ["write", "fsync", "replace"])
def test_what_was_there_outlives_a_failure(fails, tmp_path, monkeypatch):
    def no_space(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "a"
    write(path, b"one")
    if fails != "write":
        monkeypatch.setattr(os, fails, no_space)
    with (
        pytest.raises(OSError, match="No space left"),
        written_whole(str(path), overwrite=True) as file,
    ):
        file.write(b"two")
        if fails == "write":
            no_space()
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]


def test_an_interrupt_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt), written_whole(str(tmp_path / "a"), False):
        raise KeyboardInterrupt
    assert not os.listdir(tmp_path)


def no_links(*args):
    raise OSError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept(has_links, tmp_path, monkeypatch):
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "a"
    with (
        pytest.raises(ValueError, match="exists: pass overwrite=True"),
        written_whole(str(path), overwrite=False) as file,
    ):
        file.write(b"two")
        path.write_bytes(b"one")
    assert path.read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]


def test_file_systems_without_links_do(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", no_links)
    write(tmp_path / "a", b"one")
    assert (tmp_path / "a").read_bytes() == b"one" and os.listdir(tmp_path) == ["a"]


def test_long_names_and_relative_ones_are_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("n" * 250, b"one")
    assert os.listdir(tmp_path) == ["n" * 250]


def test_where_nothing_can_be_written_is_said_before(tmp_path):
    (tmp_path / "a").write_bytes(b"one")
    check_free(str(tmp_path / "a"), overwrite=True)
    check_free(str(tmp_path / "b"), overwrite=False)
    with pytest.raises(ValueError, match="exists: pass overwrite=True"):
        check_free(str(tmp_path / "a"), overwrite=False)
    with pytest.raises(ValueError, match="is a folder"):
        check_free(str(tmp_path), overwrite=True)
    with pytest.raises(ValueError, match="is not a folder: create it first"):
        check_free(str(tmp_path / "no" / "a"), overwrite=False)
    with pytest.raises(ValueError, match="is not a folder: create it first"):
        check_free(str(tmp_path / "a" / "b"), overwrite=False)
