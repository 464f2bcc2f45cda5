"""Every method gives the recorded results: see ``tests/golden_record``."""

import pytest

from tests.golden_record.record import (
    PARTS,
    ROUNDING,
    differences,
    number_of,
    record,
    stored,
)
from tests.golden_record.variants import METHODS, VARIANTS

STORED = stored()

# Every storage and way to update, and every kind of method; `make test-slow` runs all.
QUICK = {
    "set/packed/host",
    "set/compact/graph",
    "rigl/plain/graph",
    "rigl/packed/graph",
    "rigl/compact/host",
    "rigl_n_of_m/plain/host",
    "srigl/plain/graph",
    "gradual_magnitude/plain/graph",
    "top_kast/packed/graph",
    "mixed_phases/plain/graph",
    "sparseopt/rigl",
    "smet/compact",
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in VARIANTS
    ],
)
def test_training_is_as_recorded(name):
    entry = record(name)
    lines = [
        f"{part}{line}"
        for part in PARTS
        for line in differences(
            STORED[part][name], entry[part], 0.0 if part == "masks" else ROUNDING
        )
    ]
    assert not lines, "\n".join([name, *lines])


@pytest.mark.parametrize("part", PARTS)
def test_the_record_holds_every_variant(part):
    assert VARIANTS.keys() >= QUICK
    assert STORED[part].keys() == VARIANTS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_masks_do_not_depend_on_the_storage_or_the_host(method):
    masks = {
        name: STORED["masks"][name] for name in VARIANTS if name.split("/")[0] == method
    }
    assert len(masks) > 1
    assert len(set(masks.values())) == 1, masks


def test_differences_are_told_by_name():
    old = {"a": "1.0 abc", "b": {"c": "x"}, "d": "y"}
    new = {"a": "1.1 abc", "b": {"c": "x"}, "e": "y"}
    assert differences(old, old) == []
    assert differences(old, new) == [
        " a: 1.0 abc became 1.1 abc",
        " d is gone",
        " e is new",
    ]
    assert differences({"a": "1.0 abc"}, {"a": "1.0000001 abc"}, 1e-6) == []
    assert differences({"a": "1.0 abc"}, {"a": "1.0000001 abd"}, 1e-6)


def test_the_number_moves_with_every_entry():
    values = {"a": [0.5, -2.0], "b": [3.0]}
    number = float(number_of(values))
    for name, row in values.items():
        for place, value in enumerate(row):
            for other in (-value, value * 1.01):
                changed = {**values, name: [*row[:place], other, *row[place + 1 :]]}
                assert float(number_of(changed)) != pytest.approx(number, rel=1e-4)
