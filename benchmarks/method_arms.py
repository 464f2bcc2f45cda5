"""The methods to compare, each with the structures it is tested with."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sparseopt_jax as so
from sparseopt_jax.layers.structures import Structure, Structures
from sparseopt_jax.topologies.methods.str_ import SoftThreshold

Method = so.Topology | SoftThreshold | None

# Structures with their sparsities: N of M fixes its own, and for whole blocks and
# channels it is what such a small network can lose.
STRUCTURES: dict[str, tuple[Structure, float]] = {
    "unstructured": (so.Unstructured(), 0.9),
    "2:4": (so.NM(2, 4), 0.5),
    "1:4": (so.NM(1, 4), 0.75),
    "blocks of 1x4": (so.Block((1, 4)), 0.8),
    "channels": (so.Channel(), 0.5),
    "constant fan-in": (so.ConstantFanIn(), 0.9),
}
ANY, TWO_OF_FOUR = "unstructured", "2:4"

# Layers that do not fit a structure are unstructured at the same sparsity: the first,
# whose images have one channel, and the last, which has a neuron for each class.
MISFITS = {
    "2:4": "stem/*",
    "1:4": "stem/*",
    "blocks of 1x4": "head/*",
    "channels": "head/*",
}

# The initial thresholds of STR, as logits: sigmoid(-2) is 0.12. What it learns from
# there decides how sparse the network becomes.
FIRST_THRESHOLD = -2.0


class When(NamedTuple):
    """The steps at which masks are updated.

    Attributes:
      every: steps between updates.
      stop: the step at which updates end, and increasing sparsities reach their target.
    """

    every: int
    stop: int

    @classmethod
    def of(cls, steps: int) -> "When":
        """Return about thirty updates in the first three quarters of the steps."""
        return cls(max(1, steps // 40), 3 * steps // 4)

    @property
    def quarter(self) -> int:
        """Return a quarter of ``stop``, where methods with phases switch."""
        return self.stop // 4


class Arm(NamedTuple):
    """One method with one structure.

    Attributes:
      method: its name.
      structure: a key of ``STRUCTURES``; empty if there is none.
      make: builds it from a sparsity, a structure and ``When``.
      quarters: when an update is timed, in quarters of ``stop``.
    """

    method: str
    structure: str
    make: Callable[[Any, Any, When], Method]
    quarters: int = 2

    @property
    def label(self) -> str:
        """Return its name in tables."""
        return ", ".join(filter(None, (self.method, self.structure)))

    @property
    def sparsity(self) -> float | None:
        """Return the requested fraction of zeros; None if there is none."""
        return STRUCTURES[self.structure][1] if self.structure else None

    @property
    def moves(self) -> bool:
        """Tell whether its masks are updated."""
        return self.method not in ("dense", "static", "STR")

    def build(self, when: When, misfits: bool) -> Method:
        """Build the method itself.

        Args:
          when: the steps at which its masks are updated.
          misfits: whether the parameters have layers that do not fit its structure.

        Returns:
          What ``sparsify`` takes, ``SoftThreshold``, or None for dense training.
        """
        structure: Structures | None = None
        if self.structure:
            structure = STRUCTURES[self.structure][0]
            if misfits and self.structure in MISFITS:
                unfit = MISFITS[self.structure]
                structure = {unfit: so.Unstructured(), "*": structure}
        return self.make(self.sparsity, structure, when)

    def change_at(self, when: When) -> int:
        """Return the step whose update is timed."""
        return self.quarters * when.quarter


def _changing(method: Callable[..., Method], **options: Any) -> Callable[..., Method]:
    """Return a factory of a method that updates its masks at an interval."""

    def make(sparsity, structure, when):
        return method(
            sparsity, every=when.every, stop=when.stop, structure=structure, **options
        )

    return make


def _srigl(sparsity, structure, when):
    del structure  # it has a fixed structure
    return so.srigl(sparsity, every=when.every, stop=when.stop)


def _snfs(sparsity, structure, when):
    del structure  # it is unstructured
    return so.snfs(sparsity, every=when.every, stop=when.stop)


def _one_shot(sparsity, structure, when):
    return so.one_shot(sparsity, at=2 * when.quarter, structure=structure)


def _ac_dc(sparsity, structure, when):
    quarter = when.quarter
    return so.ac_dc(
        sparsity,
        compress=[quarter, 3 * quarter],
        decompress=[2 * quarter],
        structure=structure,
    )


def _phases(sparsity, structure, when):
    """Return dense, gradual pruning, RigL, frozen: a quarter of the time each."""
    every, stop, half = when.every, when.stop, 2 * when.quarter
    pruned = so.gradual_magnitude(
        sparsity, every=every, start=when.quarter, stop=half + 1, structure=structure
    )
    moved = so.rigl(masks=so.PREVIOUS_MASKS, every=every, start=half + every, stop=stop)
    return so.phases(
        (0, so.static(0.0)),
        (when.quarter, pruned),
        (half + 1, moved),
        (stop, so.static(masks=so.PREVIOUS_MASKS)),
    )


def _arms() -> list[Arm]:
    every_structure = tuple(STRUCTURES)
    unstructured = (ANY,)
    rows: Sequence[tuple[str, Sequence[str], Callable[..., Method]]] = (
        ("dense", ("",), lambda sparsity, structure, when: None),
        (
            "static",
            (ANY, TWO_OF_FOUR),
            lambda sparsity, structure, when: so.static(sparsity, structure=structure),
        ),
        ("SET", every_structure, _changing(so.set_)),
        ("RigL", every_structure, _changing(so.rigl)),
        ("SRigL", ("constant fan-in",), _srigl),
        ("MEST", unstructured, _changing(so.mest)),
        ("SNFS", unstructured, _snfs),
        ("GMP", unstructured, _changing(so.gradual_magnitude)),
        ("GMP, global", unstructured, _changing(so.gradual_magnitude, scope="global")),
        ("one-shot", unstructured, _one_shot),
        ("AC/DC", unstructured, _ac_dc),
        ("GraNet", unstructured, _changing(so.granet)),
        ("Top-KAST", unstructured, _changing(so.top_kast, trained_sparsity=0.8)),
        (
            "STE",
            (ANY, TWO_OF_FOUR),
            lambda sparsity, structure, when: so.ste(sparsity, structure=structure),
        ),
        (
            "SR-STE",
            (TWO_OF_FOUR,),
            lambda sparsity, structure, when: so.sr_ste(sparsity, structure=structure),
        ),
        (
            "STR",
            ("",),
            lambda sparsity, structure, when: so.str_(initial=FIRST_THRESHOLD),
        ),
        ("phases", unstructured, _phases),
    )
    return [
        # AC/DC is dense again at one half.
        Arm(method, structure, make, 1 if method == "AC/DC" else 2)
        for method, structures, make in rows
        for structure in structures
    ]


ARMS = {arm.label: arm for arm in _arms()}

BASELINE = "dense"
STE = (f"STE, {ANY}", f"STE, {TWO_OF_FOUR}")
STATIC = (f"static, {ANY}", f"static, {TWO_OF_FOUR}")
CHANGE = f"RigL, {ANY}"
# One method of each kind, to check that they run.
QUICK = (BASELINE, *STATIC, CHANGE, *STE, "STR")
