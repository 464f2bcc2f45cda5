"""The images: their selection, order and crops, and the files they come from."""

import itertools
import sys
import threading

import chex
import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from examples.imagenet import data


@pytest.fixture(scope="module")
def source():
    """Return images of many sizes, each labelled by its index."""
    random = np.random.default_rng(0)
    return [
        {
            "image": random.integers(
                256, size=(*random.integers(5, 50, size=2), 3), dtype=np.uint8
            ),
            "label": label,
        }
        for label in range(21)
    ]


def reader(rows=range(4), batch_size=4, size=8, prefetch=2):
    return data.Reader(batch_size, np.array(rows), size, workers=2, prefetch=prefetch)


def first_batches(count, source, **options):
    batch_reader = options.pop("reader", reader())
    batches = data.training_batches(
        source, batch_reader, seed=3, per_epoch=5, **options
    )
    return list(itertools.islice(batches, count))


def assert_equal(batches, others):
    chex.assert_trees_all_equal(batches, others)


class TestTrainingBatches:
    def test_an_epoch_shows_every_image_at_most_once(self, source):
        labels = np.concatenate([b.labels for b in first_batches(10, source)])
        first, second = labels.reshape(2, 20)
        assert len(set(first)) == len(set(second)) == 20
        assert first.tolist() != second.tolist()

    def test_do_not_depend_on_the_processes(self, source):
        whole = first_batches(7, source)
        parts = [
            first_batches(7, source, reader=reader(rows)) for rows in ([0, 3], [1, 2])
        ]
        for batch, (outer, inner) in zip(whole, zip(*parts, strict=True), strict=True):
            assert_equal(jax.tree.map(lambda x: x[[0, 3]], batch), outer)
            assert_equal(jax.tree.map(lambda x: x[[1, 2]], batch), inner)

    @pytest.mark.parametrize("done", [1, 5, 6])
    def test_go_on_with_the_next(self, source, done):
        assert_equal(
            first_batches(8 - done, source, first=done), first_batches(8, source)[done:]
        )

    def test_do_not_depend_on_the_threads(self, source):
        alone = reader()._replace(workers=1, prefetch=1)
        assert_equal(first_batches(7, source, reader=alone), first_batches(7, source))

    def test_augment_an_image_anew_each_epoch(self, source):
        images = {}
        for batch in first_batches(10, source):
            for image, label in zip(batch.images, batch.labels, strict=True):
                images.setdefault(int(label), []).append(image)
        twice = [both for both in images.values() if len(both) == 2]
        assert len(twice) >= 19
        assert all((one != other).any() for one, other in twice)

    def test_depend_on_the_seed(self, source):
        batches = data.training_batches(source, reader(), seed=4, per_epoch=5)
        [batch] = first_batches(1, source)
        assert next(batches).labels.tolist() != batch.labels.tolist()
        batches.close()

    def test_end_their_threads(self, source):
        batches = data.training_batches(source, reader(), seed=0, per_epoch=5)
        next(batches)
        batches.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("decode")]

    def test_a_broken_image_is_told(self, source):
        broken = [dict(example, image=None) for example in source]
        with pytest.raises(AttributeError):
            first_batches(1, broken)


class TestEvaluationBatches:
    @pytest.mark.parametrize("parts", [[range(4)], [[0, 1], [2, 3]], [[0, 3], [1, 2]]])
    def test_show_every_image_once(self, source, parts):
        labels = []
        for rows in parts:
            batches = list(data.evaluation_batches(source, reader(rows), resize=9))
            assert len(batches) == 6
            for batch in batches:
                assert set(batch.weights) <= {0.0, 1.0}
                labels += batch.labels[batch.weights == 1].tolist()
        assert sorted(labels) == list(range(21))

    def test_show_the_centre(self):
        image = np.zeros((40, 60, 3), np.uint8)
        image[4:36, 14:46] = 200
        seen = data.central(image, 32, 40)
        assert seen.shape == (32, 32, 3)
        assert (seen == 200).all()

    def test_is_a_crop_of_what_was_resized(self):
        random = np.random.default_rng(0)
        small = random.integers(256, size=(6, 9, 3), dtype=np.uint8)
        picture = Image.fromarray(small).resize((450, 300), Image.Resampling.BICUBIC)
        resized = np.asarray(picture.resize((384, 256), Image.Resampling.BILINEAR))
        expected = resized[16:240, 80:304].astype(int)
        seen = data.central(np.asarray(picture), 224, 256).astype(int)
        assert np.abs(seen - expected).mean() < 1


class TestAugmentation:
    @pytest.mark.parametrize("shape", [(200, 300), (30, 30), (1, 1), (5, 400)])
    def test_boxes_are_parts_of_the_image(self, shape):
        random = np.random.default_rng(0)
        height, width = shape
        for _ in range(200):
            left, upper, right, lower = data.random_box(height, width, random)
            assert 0 <= left < right <= width
            assert 0 <= upper < lower <= height

    def test_boxes_are_as_large_and_as_wide_as_they_should(self):
        random = np.random.default_rng(0)
        boxes = np.array([data.random_box(1000, 1200, random) for _ in range(2000)])
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        share, ratio = width * height / 1.2e6, width / height
        assert 0.075 < share.min() < 0.1
        assert 0.95 < share.max() <= 1.0
        assert 0.74 < ratio.min() < 0.77
        assert 1.3 < ratio.max() < 1.34

    def test_half_of_the_images_are_flipped(self):
        ramp = np.tile(np.arange(60, dtype=np.uint8)[:, None], (50, 1, 3))
        random = np.random.default_rng(0)
        rises = [
            int(cut[4, 7, 0]) > int(cut[4, 0, 0])
            for cut in (data.augmented(ramp, 8, random) for _ in range(400))
        ]
        assert 160 < sum(rises) < 240


class TinyImages(tfds.core.GeneratorBasedBuilder):
    """Ten coloured JPEG images, each of one colour."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(num_classes=4),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples() for name in ("train", "validation")}

    def _generate_examples(self):
        for index in range(10):
            image = Image.new("RGB", (40 + index, 30), (20 * index, 100, 200))
            yield index, {"image": image, "label": index % 4}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Return a folder in which the tiny images are prepared."""
    folder = tmp_path_factory.mktemp("tfds")
    builder = TinyImages(data_dir=folder, file_format="array_record")
    tfds.disable_progress_bar()
    builder.download_and_prepare()
    return str(folder)


class TestFiles:
    def test_are_read_without_tensorflow(self, prepared):
        split = data.open_split("tiny_images", prepared, "validation")
        assert data.class_count(split) == 4
        [batch] = data.evaluation_batches(
            split, reader(range(10), batch_size=10, size=32), resize=32
        )
        assert batch.images.shape == (10, 32, 32, 3)
        # Files are shuffled, and JPEG is not exact.
        colours = batch.images.reshape(10, -1, 3).mean(axis=1)
        expected = [[20 * index, 100, 200] for index in range(10)]
        order = np.argsort(colours[:, 0])
        np.testing.assert_allclose(colours[order], expected, atol=3)
        assert (batch.labels[order] == np.arange(10) % 4).all()
        assert "tensorflow" not in sys.modules

    def test_another_split_is_missed(self, prepared):
        with pytest.raises(ValueError, match=r"Unknown split 'test'(.|\n)*tfds build"):
            data.open_split("tiny_images", prepared, "test")
