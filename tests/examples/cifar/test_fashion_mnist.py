"""Fashion-MNIST: IDX files, the folder that has them, and the trainer on them."""

import gzip
import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from examples.cifar import data as cifar
from examples.cifar.config import Config
from examples.cifar.trainer import Trainer
from examples.common import fashion_mnist, idx


def encoded(array, kind=8):
    """Return an array in IDX format."""
    head = struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape)
    return head + array.astype(idx.TYPES[kind]).tobytes()


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return {
        "train_images": random.integers(256, size=(40, 28, 28), dtype=np.uint8),
        "train_labels": np.arange(40, dtype=np.uint8) % 10,
        "test_images": random.integers(256, size=(20, 28, 28), dtype=np.uint8),
        "test_labels": np.arange(20, dtype=np.uint8) % 10,
    }


@pytest.fixture
def folder(tmp_path, arrays):
    """Return a folder with the four files, one of them not compressed."""
    folder = tmp_path / "files"
    folder.mkdir()
    for split, name in fashion_mnist.FILES.items():
        content = encoded(arrays[split])
        if split == "test_labels":
            (folder / name).write_bytes(content)
        else:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    return folder


class TestIdx:
    @pytest.mark.parametrize("kind", idx.TYPES)
    def test_arrays_come_back_in_the_machines_own_byte_order(self, kind, tmp_path):
        array = np.arange(24).reshape(2, 3, 4)
        path = tmp_path / "file"
        path.write_bytes(encoded(array, kind))
        found = idx.read(path)
        np.testing.assert_array_equal(found, array)
        assert found.dtype.isnative and found.dtype.str[1:] == idx.TYPES[kind][1:]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda content: b"\1" + content[1:], "is not an IDX file: it begins with"),
            (lambda content: content[:2] + b"\7" + content[3:], "is not an IDX file"),
            (lambda content: content[:2], "is not an IDX file"),
            (lambda content: b"", "is not an IDX file"),
            (lambda content: content[:9], "is cut short: its header has 2 axes"),
            (
                lambda content: content[:-1],
                "has 19 bytes, but an array of shape (2, 4) takes 20",
            ),
            (lambda content: content + b"\0", "has 21 bytes"),
            (lambda content: gzip.compress(content)[:-9], "damaged or cut short"),
            (lambda content: gzip.compress(content)[:12], "damaged or cut short"),
            (lambda content: b"\x1f\x8b" + content, "damaged or cut short"),
        ],
    )
    def test_what_is_damaged_is_told_with_its_path(self, change, message, tmp_path):
        path = tmp_path / "file"
        path.write_bytes(change(encoded(np.arange(8).reshape(2, 4))))
        with pytest.raises(ValueError) as error:
            idx.read(path)
        assert str(error.value).startswith(str(path)) and message in str(error.value)


class TestFiles:
    def test_are_read_from_the_folder_that_is_given(self, folder, arrays):
        dataset = cifar.load("fashion_mnist", folder, train=30)
        assert dataset.train_images.shape == (30, 28, 28, 1)
        assert dataset.train_images.dtype == np.uint8
        assert dataset.test_labels.dtype == np.int32 and dataset.classes == 10
        assert not dataset.is_synthetic and dataset.margin == 3
        np.testing.assert_array_equal(
            dataset.test_images[..., 0], arrays["test_images"]
        )
        mean, deviation = dataset.moments()
        pixels = arrays["train_images"][:30]
        np.testing.assert_allclose(mean, [pixels.mean()], rtol=1e-6)
        np.testing.assert_allclose(deviation, [pixels.std()], rtol=1e-6)

    def test_are_found_where_the_system_has_them(self, folder, monkeypatch):
        monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", folder)
        assert len(cifar.load("fashion_mnist").train_labels) == 40
        monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", folder / "none")
        assert fashion_mnist.find() is None

    def test_one_that_is_missing_is_named(self, folder):
        (folder / "train-labels-idx1-ubyte.gz").unlink()
        with pytest.raises(ValueError, match="neither train-labels-idx1-ubyte nor"):
            cifar.load("fashion_mnist", folder)

    def test_labels_of_other_images_are_refused(self, folder):
        (folder / "t10k-labels-idx1-ubyte").write_bytes(encoded(np.zeros(21)))
        with pytest.raises(
            ValueError, match=r"test split in .* labels have shape \(21,"
        ):
            cifar.load("fashion_mnist", folder)

    @pytest.mark.parametrize("count", [0, 60_001])
    def test_more_images_than_there_are(self, count):
        with pytest.raises(ValueError, match=f"from 1 to 60,000, got {count}"):
            cifar.load("fashion_mnist", train=count)

    def test_a_trainer_takes_images_of_one_colour(self, folder):
        dataset = cifar.load("fashion_mnist", folder)
        config = Config("set_cifar100_r20", dataset="fashion_mnist", batch_size=16)
        trainer = Trainer(config, dataset, together=1, loop=False)
        stem = trainer.program.shapes["params"]["stem"]["kernel"]
        assert stem.shape == (3, 3, 1, 16) and trainer.per_epoch == 2


class TestPrepared:
    def test_it_is_read_without_tensorflow(self, tmp_path):
        with tfds.testing.mock_data(num_examples=13):
            dataset = cifar.load("fashion_mnist", tmp_path, train=10)
        assert dataset.train_images.shape == (10, 28, 28, 1) and dataset.classes == 10
        assert dataset.test_labels.shape == (13,)
        assert "tensorflow" not in sys.modules

    def test_what_is_downloaded_is_prepared_without_tensorflow(
        self, folder, arrays, tmp_path, monkeypatch
    ):
        def extracted(self, urls):
            names = (Path(url).name for url in urls.values())
            found = [next(folder.glob(f"{name[:-3]}*")) for name in names]
            return dict(zip(urls, map(str, found), strict=True))

        manager = tfds.download.DownloadManager
        monkeypatch.setattr(manager, "download_and_extract", extracted)
        downloads = tmp_path / "data" / "downloads"
        downloads.mkdir(parents=True)
        (downloads / "fash.s3_train-images-idx3-ubyteA7.gz").touch()
        dataset = cifar.load("fashion_mnist", tmp_path / "data")
        images = dataset.train_images[..., 0].tolist()
        # Its files are shuffled.
        order = [arrays["train_images"].tolist().index(image) for image in images]
        assert sorted(order) == [*range(40)]
        np.testing.assert_array_equal(
            dataset.train_labels, arrays["train_labels"][order]
        )
        assert "tensorflow" not in sys.modules

    def test_what_cannot_be_had_is_told_with_the_remedies(self, tmp_path, monkeypatch):
        def fail(url, timeout):
            raise urllib.error.URLError("no route to host.")

        monkeypatch.setattr(urllib.request, "urlopen", fail)
        with pytest.raises(ValueError) as error:
            cifar.load("fashion_mnist", tmp_path)
        message = " ".join(str(error.value).split())
        assert f"fashion_mnist cannot be read from {tmp_path}" in message
        for remedy in ("--data-dir", "IDX files", "/usr/share/datasets", "glyphs"):
            assert remedy in message
