"""Read what a compiled program sends between devices."""

import collections
import math
import re
from typing import NamedTuple

# Operations that move arrays, and those that only sum.
MOVES = ("all-gather", "all-to-all", "collective-permute", "ragged-all-to-all")
SUMS = ("all-reduce", "reduce-scatter")

_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(
    rf"= (.*?) ({'|'.join(sorted(MOVES + SUMS, key=len, reverse=True))})(?:-start)?\("
)
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|true_computation|"
    r"false_computation)=(\{[^}]*\}|%?[\w.\-]+)"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


class Collective(NamedTuple):
    """A collective operation.

    Attributes:
      kind: its name in HLO.
      size: bytes of its result on one device.
      times: how often it runs, at most.
    """

    kind: str
    size: int
    times: int


def collectives(text: str, passes: int) -> list[Collective]:
    """Return the collective operations of a compiled program.

    Args:
      text: ``compiled.as_text()``.
      passes: upper bound of a loop's iterations, if the program does not state them.

    Returns:
      One entry for each place in the program.

    Raises:
      ValueError: if there is no entry computation.
    """
    lines: dict[str, list[str]] = collections.defaultdict(list)
    entry = name = None
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
            entry = name if match[1] else entry
        elif name is not None:
            lines[name].append(line)
    if entry is None:
        raise ValueError("not HLO text: it has no ENTRY computation")

    found = []

    def visit(name: str, times: int) -> None:
        for line in lines[name]:
            if match := _COLLECTIVE.search(line):
                found.append(Collective(match[2], _size(match[1]), times))
            trips = _TRIPS.search(line)
            for kind, called in _CALLED.findall(line):
                loops = kind in ("body", "condition")
                repeats = (int(trips[1]) if trips else passes) if loops else 1
                for other in re.findall(r"[\w.\-]+", called):
                    visit(other, times * repeats)

    visit(entry, 1)
    return found


def moved(found: list[Collective], kinds: tuple[str, ...]) -> int:
    """Count the bytes of the results of all collectives of these kinds, per device."""
    return sum(c.size * c.times for c in found if c.kind in kinds)


def _size(shapes: str) -> int:
    """Count the bytes of a shape, or of a tuple of shapes, as written in HLO."""
    return sum(
        _bytes(dtype) * math.prod(int(n) for n in dims.split(",") if n)
        for dtype, dims in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shapes)
    )


def _bytes(dtype: str) -> int:
    if dtype in _BYTES:
        return _BYTES[dtype]
    return math.ceil(int(re.findall(r"\d+", dtype)[0]) / 8)
