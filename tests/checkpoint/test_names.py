"""Valid names of folders, steps and leaves."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparseopt_jax.checkpoint import Checkpoints
from sparseopt_jax.checkpoint.record import finish

STATE = {"x": jnp.arange(4.0)}


def round_trip(directory, state=STATE, step=1):
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.save(step, state)
    with Checkpoints(directory) as checkpoints:
        restored, _ = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    for x, y in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(x, y)


# Folders.


@pytest.mark.parametrize(
    "name",
    ["lr 0.1", "größe", "50%", "a%20b", "#1", "{a,b}", "x=1;y", "a:b", ".hidden", "]"],
)
def test_folders_with_odd_names(name, tmp_path):
    round_trip(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("name", ["layers=[1,2]", "a\\b", "lr=*", "what?"])
def test_names_that_are_patterns_are_refused(name, tmp_path):
    for folder in (tmp_path / name, tmp_path / name / "run"):
        with pytest.raises(ValueError, match="directory must not contain") as caught:
            Checkpoints(folder)
        assert repr(str(folder)) in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_home_addresses_relative_paths_and_slashes(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for directory in (
        "~/home",
        f"file://{tmp_path}/address",
        f"file://localhost{tmp_path}/host",
        f"file://{tmp_path}/two%20words",
        "relative",
        f"{tmp_path}/slash/",
        f"{tmp_path}/a/../b",
        pathlib.Path("~/path"),
    ):
        round_trip(directory)
    assert sorted(os.listdir(tmp_path)) == [
        *("address", "b", "home", "host", "path", "relative", "slash", "two words")
    ]
    for directory in ("~nobody-of-this-name/run", "file://elsewhere/run", "", " "):
        with pytest.raises(ValueError, match="directory"):
            Checkpoints(directory)
    for directory in (b"bytes", None, 3):
        with pytest.raises(TypeError):
            Checkpoints(directory)


def test_links_and_files_in_the_way(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for name in ("dangling", "dangling/run"):
        with pytest.raises(ValueError, match=r"is a link to .*nowhere, which does not"):
            Checkpoints(tmp_path / name)
    for name in ("file", "file/run"):
        with pytest.raises(ValueError, match="file is not a directory"):
            Checkpoints(tmp_path / name)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    round_trip(tmp_path / "link")
    assert os.listdir(tmp_path / "folder") == ["1"]


# Steps.


@pytest.mark.parametrize(
    ("step", "error"),
    [
        *((x, TypeError) for x in (2.0, "2", None, True, np.float32(2), jnp.ones(2))),
        *((x, ValueError) for x in (-1, np.int64(-1))),
    ],
)
def test_what_is_no_step_is_refused(step, error, tmp_path):
    with Checkpoints(tmp_path / "run") as checkpoints:
        with pytest.raises(error, match="step must be "):
            checkpoints.save(step, STATE)
        if step is not None:
            with pytest.raises(error, match="step must be "):
                checkpoints.restore(STATE, step=step)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("step", [0, np.int32(7), np.uint8(7), jnp.int32(7)])
def test_integers_of_every_kind_are_steps(step, tmp_path):
    round_trip(tmp_path, step=step)
    assert os.listdir(tmp_path) == [str(int(step))]
    with Checkpoints(tmp_path) as checkpoints:
        assert not checkpoints.save(int(step), STATE)
        assert checkpoints.restore(STATE, step=step)


@pytest.mark.parametrize(
    ("number", "error"),
    [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_how_many_are_kept_is_at_least_one(number, error, tmp_path):
    with pytest.raises(error, match="max_to_keep must be "):
        Checkpoints(tmp_path, max_to_keep=number)


def test_other_arguments_of_another_type(tmp_path):
    with pytest.raises(TypeError, match="topology must be a Topology"):
        Checkpoints(tmp_path, topology="rigl")
    with pytest.raises(TypeError, match="optimizer must be an optax transformation"):
        Checkpoints(tmp_path, optimizer=0.1)


@pytest.mark.parametrize("copied", [False, True])
def test_a_step_under_another_number_is_told(copied, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, STATE)
        checkpoints.save(5, STATE)
    if copied:
        shutil.copytree(tmp_path / "5", tmp_path / "7")
    else:
        (tmp_path / "5").rename(tmp_path / "7")
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=r"7 holds step 5 and has been renamed"),
    ):
        checkpoints.restore(STATE)


@pytest.mark.parametrize("name", ["007", "٣", "1.bak", "latest"])
def test_folders_that_are_no_steps(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="which is not a checkpoint"):
        Checkpoints(tmp_path)


def test_a_file_with_the_name_of_a_step(tmp_path):
    (tmp_path / "7").touch()
    with pytest.raises(ValueError, match="7 is not a checkpoint of this library"):
        Checkpoints(tmp_path)


# Leaves.

KEYS = ["a.b", ".", "..", "", "%", "%2E", "a b", "ü", "[0]", "*", "?", "\\", "#", "d"]


def test_keys_that_coincide_in_dotted_names_are_kept_apart(tmp_path):
    x = jnp.arange(3.0)
    state = {
        "a.b": x,
        "a": {"b": x + 1, "b.c": x + 2, "": x + 3},
        "a%2Eb": x + 4,
        "a.": {"b": x + 5},
        "": {"": x + 6, "a.b": x + 7},
        ".": x + 8,
        "%": x + 9,
    }
    round_trip(tmp_path, state)


def test_keys_of_every_kind(tmp_path):
    state = {key: jnp.full(3, i) for i, key in enumerate(KEYS)}
    state["below"] = {key: {"kernel": jnp.full(2, i)} for i, key in enumerate(KEYS)}
    state["slash"] = {"a/b": jnp.ones(2)}
    round_trip(tmp_path, state)


@pytest.mark.parametrize(
    "state",
    [
        {"a/b": jnp.ones(2), "a": {"b": jnp.zeros(2)}},
        {"a": jnp.ones(2), "a/b": jnp.zeros(2)},
        {"a": {"b/c": jnp.ones(2), "b": {"c": jnp.zeros(2)}}},
    ],
)
def test_paths_that_coincide_are_refused(state, tmp_path):
    with (
        Checkpoints(tmp_path / "run") as checkpoints,
        pytest.raises(ValueError, match=r"lea(f|ves) .*'a/b"),
    ):
        checkpoints.save(1, state)
    assert os.listdir(tmp_path) == []


# Records of other versions.


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, r"3 cannot be read: its record has no version.*first release"),
        (99, r"3 cannot be read: its record has version 99.*--upgrade"),
    ],
)
def test_records_of_other_versions_are_refused(tmp_path, version, message):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, STATE)
    file = tmp_path / "3" / "record" / "metadata"
    record = json.loads(file.read_text())
    del record["crc32"], record["version"]
    file.write_text(
        json.dumps(finish(record if version is None else record | {"version": version}))
    )
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match=message),
    ):
        checkpoints.restore(STATE)
