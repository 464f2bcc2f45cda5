"""Glyphs and CIFAR as bytes in memory, and their augmentation on the device."""

import dataclasses
import sys
import urllib.error
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from examples.cifar import data as cifar
from examples.common import augment, glyphs

SMALL = {"size": 8, "train": 250, "test": 120}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder that has the smallest glyphs."""
    folder = tmp_path_factory.mktemp("glyphs")
    glyphs.load(folder, **SMALL)
    return folder


def stored(folder):
    [path] = Path(folder).iterdir()
    return path


class TestGlyphs:
    def test_are_the_same_every_time(self, folder, tmp_path):
        first, again = (glyphs.load(where, **SMALL) for where in (folder, tmp_path))
        for one, other in zip(first, again, strict=True):
            np.testing.assert_array_equal(one, other)
        assert first.train_images.shape == (250, 8, 8, 3)
        assert first.train_images.dtype == np.uint8
        assert 15 < first.train_images.std() < 80

    def test_depend_on_the_seed_and_the_split(self, folder):
        images = glyphs.load(folder, **SMALL)
        assert (images.train_images[:120] != images.test_images).mean() > 0.9
        others, _ = glyphs.draw(1, "train", 250, 8)
        assert (images.train_images != others).mean() > 0.9

    def test_fewer_are_the_first_of_the_same(self, folder):
        few, labels = glyphs.draw(0, "train", 120, 8)
        many = glyphs.load(folder, **SMALL)
        # Another program may round differently.
        assert np.abs(few - many.train_images[:120].astype(int)).max() <= 1
        np.testing.assert_array_equal(labels, many.train_labels[:120])

    def test_classes_have_as_many_images(self, folder):
        images = glyphs.load(folder, **SMALL)
        counts = np.bincount(images.train_labels)
        assert len(counts) == 100
        assert set(counts) == {2, 3}
        assert set(images.test_labels) == set(range(100))

    def test_images_of_a_class_are_alike(self):
        """Without noise and movement they equal the pattern; with them they do not."""
        still = dataclasses.replace(
            glyphs.DIFFICULTY,
            rotation=0.0,
            scale=1.0,
            shift=0.0,
            gain=1.0,
            noise=0.0,
            faintest=1.0,
        )
        images, _ = glyphs.draw(0, "train", 250, 8, still)
        np.testing.assert_array_equal(images[:100], images[100:200])
        same_class = np.abs(images[:1] - images[1:100].astype(int)).mean(axis=(1, 2, 3))
        assert same_class.min() > 5

    @pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
    def test_a_damaged_file_is_made_anew(self, folder, damage, monkeypatch):
        path, expected = stored(folder), glyphs.load(folder, **SMALL)
        whole = path.read_bytes()
        middle = len(whole) // 2
        if damage == "foreign":
            np.savez(path, pixels=np.zeros(3))
        else:
            path.write_bytes(
                {
                    "cut": whole[:middle],
                    "flipped": whole[:middle] + b"hurt" + whole[middle + 4 :],
                    "empty": b"",
                }[damage]
            )
        drawn = {
            "train": (expected.train_images, expected.train_labels),
            "test": (expected.test_images, expected.test_labels),
        }
        asked = []
        monkeypatch.setattr(
            glyphs, "draw", lambda seed, split, *_: asked.append(split) or drawn[split]
        )
        again = glyphs.load(folder, **SMALL)
        assert asked == ["train", "test"]
        for one, other in zip(expected, again, strict=True):
            np.testing.assert_array_equal(one, other)
        glyphs.load(folder, **SMALL)
        assert asked == ["train", "test"]
        assert [stored(folder)] == [path]

    def test_another_difficulty_is_made_anew(self, folder, monkeypatch):
        monkeypatch.setattr(
            glyphs, "draw", lambda *args: pytest.fail(f"{args[-1].noise}")
        )
        glyphs.load(folder, **SMALL)
        harder = dataclasses.replace(glyphs.DIFFICULTY, noise=7.0)
        with pytest.raises(pytest.fail.Exception, match=r"7\.0"):
            glyphs.load(folder, **SMALL, difficulty=harder)


class TestDatasets:
    def test_glyphs_say_that_they_are_synthetic(self, tmp_path, monkeypatch):
        def made(folder, *, size, train, test):
            images = np.zeros((1, size, size, 3), np.uint8)
            return (images.repeat(train, 0), np.zeros(train), images, np.zeros(1))

        monkeypatch.setattr(glyphs, "load", made)
        small = cifar.load("glyphs16", tmp_path, train=7)
        assert small.is_synthetic and not small.flips
        assert small.train_images.shape == (7, 16, 16, 3)
        assert small.margin == 2
        assert cifar.load("glyphs").margin == 4

    @pytest.mark.parametrize("name", ["cifar10", "cifar100"])
    def test_cifar_is_read_without_tensorflow(self, name, tmp_path):
        with tfds.testing.mock_data(num_examples=23):
            dataset = cifar.load(name, tmp_path, train=20)
        assert dataset.classes == int(name.removeprefix("cifar"))
        assert dataset.train_images.shape == (20, 32, 32, 3)
        assert dataset.train_images.dtype == np.uint8
        assert dataset.test_labels.shape == (23,)
        assert dataset.test_labels.dtype == np.int32
        assert dataset.flips and dataset.margin == 4 and not dataset.is_synthetic
        assert "tensorflow" not in sys.modules

    def test_the_archive_is_prepared_without_tensorflow(self, tmp_path, monkeypatch):
        """Two images of each split, in the files of the archive."""
        random = np.random.default_rng(0)
        archive = tmp_path / "archive" / "cifar-100-binary"
        archive.mkdir(parents=True)
        rows = {}
        for split in ("train", "test"):
            rows[split] = random.integers(100, size=(2, 2 + 3072), dtype=np.uint8)
            rows[split][:, 0] %= 20
            (archive / f"{split}.bin").write_bytes(rows[split].tobytes())
        for file, count in (("coarse", 20), ("fine", 100)):
            names = "\n".join(f"{file}{number}" for number in range(count))
            (archive / f"{file}_label_names.txt").write_text(names + "\n")
        monkeypatch.setattr(
            tfds.download.DownloadManager,
            "download_and_extract",
            lambda self, url: str(archive.parent),
        )
        downloads = tmp_path / "data" / "downloads"
        downloads.mkdir(parents=True)
        (downloads / "kriz_cifar-100-binary_J7.tar.gz").touch()
        dataset = cifar.load("cifar100", tmp_path / "data")
        labels = dataset.train_labels
        # Its files are shuffled.
        order = [rows["train"][:, 1].tolist().index(label) for label in labels]
        images = rows["train"][order, 2:].reshape(2, 3, 32, 32)
        np.testing.assert_array_equal(dataset.train_images, np.moveaxis(images, 1, -1))
        assert "tensorflow" not in sys.modules

        # A part of the prepared files is deleted.
        for path in (tmp_path / "data" / "cifar100").rglob("*test.array_record*"):
            path.unlink()
        with pytest.raises(ValueError, match="cifar100 cannot be read from"):
            cifar.load("cifar100", tmp_path / "data")

    def test_missing_data_are_told(self, tmp_path, monkeypatch):
        def fail(url, timeout):
            raise urllib.error.URLError("no route to host.")

        monkeypatch.setattr(urllib.request, "urlopen", fail)
        with pytest.raises(ValueError) as error:
            cifar.load("cifar10", tmp_path)
        message = " ".join(str(error.value).split())
        assert f"cifar10 cannot be read from {tmp_path}" in message
        assert "no route to host" in message
        assert "--dataset glyphs" in message
        assert "--data-dir" in message

    @pytest.mark.parametrize("count", [0, 50_001])
    def test_more_images_than_there_are(self, count):
        with pytest.raises(ValueError, match=f"from 1 to 50,000, got {count}"):
            cifar.load("glyphs", train=count)

    def test_moments_are_those_of_each_colour(self):
        random = np.random.default_rng(0)
        images = random.integers(256, size=(1200, 4, 4, 3), dtype=np.uint8)
        images[..., 1] //= 3
        dataset = cifar.Dataset("cifar10", images, None, None, None, 10)
        mean, deviation = dataset.moments()
        pixels = images.reshape(-1, 3).astype(float)
        np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(deviation, pixels.std(axis=0), rtol=1e-6)


class TestAugmentation:
    IMAGE = jnp.array([[1, 2], [3, 4]], jnp.uint8)[None, :, :, None]

    @pytest.mark.parametrize(
        ("corner", "padding", "expected"),
        [
            ((1, 1), "zeros", [[1, 2], [3, 4]]),
            ((0, 0), "zeros", [[0, 0], [0, 1]]),
            ((2, 1), "zeros", [[3, 4], [0, 0]]),
            ((0, 0), "mirror", [[1, 1], [1, 1]]),
            ((2, 0), "mirror", [[3, 3], [3, 3]]),
            ((1, 2), "mirror", [[2, 2], [4, 4]]),
        ],
    )
    def test_crops(self, corner, padding, expected):
        cut = augment.cropped(
            self.IMAGE, jnp.array([corner]), margin=1, padding=padding
        )
        assert cut.dtype == jnp.uint8
        assert cut[0, :, :, 0].tolist() == expected

    def test_mirrors_left_and_right(self):
        images = jnp.concatenate([self.IMAGE] * 2)
        seen = augment.mirrored(images, jnp.array([True, False]))
        assert seen[..., 0].tolist() == [[[2, 1], [4, 3]], [[1, 2], [3, 4]]]

    def test_is_decided_by_the_key(self):
        images = jnp.arange(64 * 64 * 3, dtype=jnp.uint32).reshape(64, 8, 8, 3)
        images = (images % 251).astype(jnp.uint8)

        def seen(key, flip):
            return augment.augmented(
                jax.random.key(key), images, margin=2, padding="zeros", flip=flip
            )

        first = seen(0, True)
        np.testing.assert_array_equal(first, seen(0, True))
        assert (first != seen(1, True)).any()
        plain = seen(0, False)
        flipped = [(a != b).any() for a, b in zip(first, plain, strict=True)]
        assert 16 < sum(flipped) < 48
        np.testing.assert_array_equal(
            first, augment.mirrored(plain, jnp.array(flipped))
        )
        unmoved = [(a == b).all() for a, b in zip(plain, images, strict=True)]
        assert sum(unmoved) < 12  # one in 25
