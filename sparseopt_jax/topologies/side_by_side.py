"""One update of a rewiring's masks with all leaves side by side, as rows of one array.

The stages are the same as for a single leaf, and the results are bit-identical. But
they are compiled once, not once per leaf: a network of many layers starts in a fraction
of the time. Leaves that are, or may be, split over devices, and units that cannot be
arranged in rows, are updated leaf by leaf.
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from sparseopt_jax.arrays.row_layout import Rows, rows_kind
from sparseopt_jax.arrays.row_units import RowUnits
from sparseopt_jax.arrays.rows import by_bins, can_be_drawn, map_bins, of_bin
from sparseopt_jax.arrays.sharding_types import is_whole
from sparseopt_jax.topologies import scores
from sparseopt_jax.topologies.leaf import Demand, Leaf
from sparseopt_jax.topologies.stages import Draft, Stage, held_units
from sparseopt_jax.topologies.updates import Rewired, first_drafts, rewire
from sparseopt_jax.trees.leaf_keys import leaf_keys

if TYPE_CHECKING:
    from sparseopt_jax.topologies.rewiring import Rewiring

# float32 represents these exactly, so leaves can be joined before they are scored.
_EXACT = (jnp.float32, jnp.bfloat16, jnp.float16)


class Group(NamedTuple):
    """Leaves that are updated by the same code: static and hashable.

    Attributes:
      rows: their arrangement in rows.
      stages: the stages to run.
      scored: the drop and the grow score, if units are scored in rows; None if they
        have been scored before.
      planned: active units planned for each leaf's layers; None without a plan.
    """

    rows: Rows
    stages: tuple[Stage, ...]
    scored: tuple[scores.Score, scores.Score] | None
    planned: tuple[int, ...] | None


class Numbers(NamedTuple):
    """What a group's update reads besides its units.

    Attributes:
      fraction: as in ``Demand``.
      adapts: as in ``Demand``.
      rises: as in ``Demand``, a bool of each leaf; None if True for all.
      targets: active units of each leaf's cells, int32; None without targets.
      keys: (leaves, 2) typed keys, for the drop and the grow score; None if no score is
        drawn.
      measured: what stages have measured, a vector over the leaves' layers, by name.
    """

    fraction: jax.Array
    adapts: jax.typing.ArrayLike
    rises: jax.Array | None
    targets: jax.Array | None
    keys: jax.Array | None
    measured: dict[str, jax.Array]


def rewire_side_by_side(
    rewiring: "Rewiring", key: jax.Array, leaves: dict[str, Leaf], demand: Demand
) -> Rewired | None:
    """Run the stages over all leaves together.

    Args:
      rewiring: the topology.
      key: typed PRNG key of the step.
      leaves: what the update reads of every sparse leaf, by path.
      demand: what the update must do.

    Returns:
      The new masks; None if the leaves must be updated one by one.
    """
    is_scored = _can_be_scored_in_rows(rewiring, key, list(leaves.values()))
    members = _members(leaves, demand, is_scored)
    if members is None or (rewiring.crosses_layers and len(members) > 1):
        return None

    drafts = None if is_scored else first_drafts(rewiring, key, leaves, demand)
    new = Rewired(masks={}, grown={}, fan_ins={})
    for (_, (has_target, is_planned), _), paths in members.items():
        joined = [leaves[path] for path in paths]
        group = Group(
            rows=Rows.of(
                [leaf.units for leaf in joined], together=rewiring.crosses_layers
            ),
            stages=rewiring.stages,
            scored=(rewiring.drop, rewiring.grow) if is_scored else None,
            planned=tuple(map(_planned, joined)) if is_planned else None,
        )
        numbers = Numbers(
            fraction=demand.fraction,
            adapts=demand.adapts,
            rises=_stacked([demand.rises.get(p, True) for p in paths], jnp.bool_)
            if demand.rises
            else None,
            targets=_stacked([demand.targets[p] for p in paths], jnp.int32)
            if has_target
            else None,
            keys=_keys(rewiring, key, paths) if is_scored else None,
            measured=_measured(rewiring, joined),
        )
        if drafts is None:
            fields = [_read(rewiring, leaf) for leaf in joined]
        else:
            fields = [_scored(drafts[path]) for path in paths]
        kept, counts, of_cells = _rewired(group, numbers, _transposed(fields))
        for path, leaf, units, count in zip(paths, joined, kept, counts, strict=True):
            new.masks[path] = leaf.new_mask(units)
            new.grown[path] = count * leaf.units.size
        for path, leaf, fan_ins in zip(paths, joined, of_cells or (), strict=False):
            if leaf.has_neurons_as_cells:
                new.fan_ins[path] = fan_ins
    return new


def _members(
    leaves: dict[str, Leaf], demand: Demand, is_scored: bool
) -> dict[Any, list[str]] | None:
    """Return the paths of each group, by the traits that its leaves share.

    None if a leaf cannot be arranged in rows.
    """
    members: dict[Any, list[str]] = {}
    for path, leaf in leaves.items():
        kind = rows_kind(leaf.units)
        if kind is None or not all(map(is_whole, (leaf.mask, leaf.param, leaf.grad))):
            return None
        traits = path in demand.targets, leaf.plan.per_cell is not None
        dtypes = (leaf.param.dtype, leaf.seen.dtype) if is_scored else ()
        members.setdefault((kind, traits, dtypes), []).append(path)
    return members


@functools.partial(jax.jit, static_argnames="group")
def _rewired(
    group: Group, numbers: Numbers, fields: dict[str, list[jax.Array]]
) -> tuple[list[jax.Array], list[jax.Array], list[jax.Array] | None]:
    """Return each leaf's active units after the update, and how many it has grown.

    If layers have several cells, also how many units of each cell are active.
    """

    def at_bin(number, units, laid):
        laid = dict(zip(fields, laid, strict=True))
        draft = _draft(group, numbers, number, units, laid)
        (new,) = rewire(group.stages, [draft])
        grown = units.count(new.kept & ~draft.active, "layer")
        of_cells = units.cell_vector(units.count(new.kept))
        return new.kept, units.layer_vector(grown), of_cells

    return map_bins(group.rows, list(fields.values()), at_bin)


def _draft(
    group: Group,
    numbers: Numbers,
    number: jax.Array,
    units: RowUnits,
    laid: dict[str, jax.Array],
) -> Draft:
    """Return the first draft of a bin."""

    def of_leaves(numbers):
        """Return the numbers of the bin's leaves, from those of the group's leaves."""
        return of_bin(group.rows, by_bins(group.rows, numbers), number)

    def in_rows(numbers):
        return jnp.take(of_leaves(numbers), units.leaf, mode="clip")[:, None]

    active = units.only(laid["active"])
    if group.scored is None:
        held, drop, grow = units.only(laid["held"]), laid["drop"], laid["grow"]
    else:
        param = laid["param"]
        drop, grow = (
            units.draw(of_leaves(numbers.keys)[:, i], param.shape[1])
            if scores.is_drawn(score)
            else score(None, param, laid.get(gradient, param))  # pyright: ignore
            for i, (score, gradient) in enumerate(
                zip(group.scored, ("grad", "seen"), strict=True)
            )
        )
        held, drop = held_units(
            active, jnp.isfinite(param), units, drop, min_fan_in=0, neuron=()
        )
    present = units.count(active)
    planned = group.planned
    return Draft(
        units=units,
        active=active,
        held=held,
        drop=drop,
        grow=grow,
        fraction=numbers.fraction,
        target=None if numbers.targets is None else in_rows(numbers.targets),
        adapts=numbers.adapts,
        rises=True if numbers.rises is None else in_rows(numbers.rises),
        planned=None if planned is None else in_rows(jnp.asarray(planned, jnp.int32)),
        measured={
            name: units.from_layer_vector(vector)
            for name, vector in numbers.measured.items()
        },
        kept=active,
        most=present,
        size=present,
    )


def _can_be_scored_in_rows(
    rewiring: "Rewiring", key: jax.Array, leaves: Sequence[Leaf]
) -> bool:
    """Return whether leaves can be joined before scoring, with the same results."""
    if rewiring.min_fan_in:
        return False
    for score in (rewiring.drop, rewiring.grow):
        if scores.is_drawn(score):
            if not can_be_drawn(key):
                return False
        elif scores.needs_key(score) or not scores.is_elementwise(score):
            return False
    return all(
        leaf.units.size == 1
        and leaf.param.dtype in _EXACT
        and leaf.seen.dtype in _EXACT
        and leaf.units.split == leaf.units.shape
        for leaf in leaves
    )


def _keys(rewiring: "Rewiring", key: jax.Array, paths: Sequence[str]) -> Any:
    """Return each leaf's two keys, as in ``first_drafts``; None if nothing is drawn."""
    if not (scores.is_drawn(rewiring.drop) or scores.is_drawn(rewiring.grow)):
        return None
    return jax.vmap(jax.random.split)(leaf_keys(key, paths))


def _measured(rewiring: "Rewiring", leaves: Sequence[Leaf]) -> dict[str, jax.Array]:
    """Return what the stages measure, as vectors over the layers of all leaves."""
    vectors: dict[str, list[jax.Array]] = {}
    for leaf in leaves:
        for name, numbers in leaf.measure(rewiring.stages).items():
            vectors.setdefault(name, []).append(leaf.units.layer_vector(numbers))
    return {name: jnp.concatenate(parts) for name, parts in vectors.items()}


def _planned(leaf: Leaf) -> int:
    assert leaf.plan.per_cell is not None
    return leaf.plan.per_cell * leaf.units.cells


def _stacked(numbers: Sequence[Any], dtype: Any) -> jax.Array:
    return jnp.stack([jnp.asarray(number, dtype) for number in numbers])


def _read(rewiring: "Rewiring", leaf: Leaf) -> dict[str, jax.Array]:
    """Return the arrays of a leaf that scoring in rows reads."""
    arrays = {"active": leaf.mask, "param": leaf.param}
    if scores.needs_gradient(rewiring.drop):
        arrays["grad"] = leaf.grad
    if scores.needs_gradient(rewiring.grow):
        arrays["seen"] = leaf.seen
    return arrays


def _scored(draft: Draft) -> dict[str, jax.Array]:
    """Return the arrays of a leaf whose units have been scored."""
    names = ("active", "held", "drop", "grow")
    return {name: getattr(draft, name) for name in names}


def _transposed(fields: Sequence[dict[str, jax.Array]]) -> dict[str, list[jax.Array]]:
    return {name: [arrays[name] for arrays in fields] for name in fields[0]}
