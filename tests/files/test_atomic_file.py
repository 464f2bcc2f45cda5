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


@pytest.mark.parametrize("name", ["n" * 250, "\u7f51" * 80 + ".bin", "n" + "é" * 120])
def test_long_names_and_relative_ones_are_written(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(name, b"one")
    assert os.listdir(tmp_path) == [name]
    write(name, b"two", overwrite=True)
    assert os.listdir(tmp_path) == [name]


def test_names_that_are_not_unicode_are_written(tmp_path):
    name = os.fsdecode(b"\xff" * 250)
    write(tmp_path / name, b"one")
    assert os.listdir(tmp_path) == [name]


def test_a_replaced_file_keeps_its_permissions(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    for mode in (0o600, 0o664, 0o444):
        path.chmod(mode)
        with written_whole(str(path), overwrite=True) as file:
            assert os.fstat(file.fileno()).st_mode & 0o777 == mode
            file.write(b"two")
        assert path.read_bytes() == b"two"
        assert path.stat().st_mode & 0o777 == mode


def test_links_still_point_to_the_file_written(tmp_path):
    (tmp_path / "large").mkdir()
    network, link, chain = tmp_path / "large" / "a", tmp_path / "b", tmp_path / "c"
    link.symlink_to(os.path.join("large", "a"))
    chain.symlink_to(link)
    for text in (b"one", b"two"):  # the file is missing, then replaced
        check_free(str(chain), overwrite=True)
        write(chain, text, overwrite=True)
        assert link.is_symlink() and chain.is_symlink() and not network.is_symlink()
        assert network.read_bytes() == text
        assert os.listdir(tmp_path / "large") == ["a"]
    for path in (link, chain):
        with pytest.raises(ValueError, match="exists: pass overwrite=True"):
            check_free(str(path), overwrite=False)


def test_a_link_to_nothing_is_not_taken_for_a_new_file(tmp_path):
    link = tmp_path / "a"
    link.symlink_to(tmp_path / "b")
    with pytest.raises(ValueError, match="exists: pass overwrite=True"):
        check_free(str(link), overwrite=False)
    with pytest.raises(ValueError, match="exists: pass overwrite=True"):
        write(link, b"one")
    assert link.is_symlink() and os.listdir(tmp_path) == ["a"]


def test_parents_are_those_of_the_folder_that_a_link_points_to(tmp_path):
    (tmp_path / "one" / "two").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "one" / "two")
    for overwrite in (False, True):
        write(os.path.join(tmp_path, "link", "..", "a"), b"one", overwrite)
    assert sorted(os.listdir(tmp_path / "one")) == ["a", "two"]


def test_what_is_not_a_file_is_not_replaced(tmp_path):
    link, pipe, lost = tmp_path / "link", tmp_path / "pipe", tmp_path / "lost"
    link.symlink_to(link)
    os.mkfifo(pipe)
    lost.symlink_to(tmp_path / "no" / "a")
    with pytest.raises(ValueError, match="a symbolic link that leads to itself"):
        check_free(str(link), overwrite=True)
    with pytest.raises(ValueError, match="is a device or a pipe"):
        check_free(str(pipe), overwrite=True)
    with pytest.raises(ValueError, match=r"lost' is in '.*no', which is not a folder"):
        check_free(str(lost), overwrite=True)
    with pytest.raises(ValueError, match=r"which is not a folder: create it first"):
        check_free(str(tmp_path / "new") + os.sep, overwrite=False)


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
