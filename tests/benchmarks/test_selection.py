import numpy as np
import pytest

from benchmarks import selection


def test_only_the_kth_largest_score_is_left_with_its_value():
    scores = np.array([3.0, 2.0, 1.0, 2.0, 2.0], np.float32)
    selection.separate(scores, 2)
    below = np.nextafter(np.float32(2), np.float32(0))
    assert sorted(scores) == [1.0, below, below, 2.0, 3.0]


def test_different_masks_are_found():
    mask = np.arange(10) == 3
    with pytest.raises(AssertionError, match="b and a give different masks"):
        selection.check_same({"a": [mask], "b": [np.roll(mask, 1)]})
    with pytest.raises(AssertionError, match="a selects 2 of 10"):
        selection.check_same({"a": [mask | np.roll(mask, 1)]})
