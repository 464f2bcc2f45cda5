"""The tables of ``docs/when_it_helps.md``, from stored results, as Markdown."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from examples.common.markdown import table
from reporting.pages import photographs
from reporting.pages.gains import (
    accuracy,
    arm_name,
    gain_of,
    legend,
    p_together,
    points,
    table_at_same_rate,
    table_of_exponents,
    table_of_rates,
    tried_in,
)
from reporting.pages.parts import named
from reporting.statistics import accuracies, by_arm, difference
from reporting.stored import load, select

ARMS = ("fan_in", "batch_variance", "weight_norm")
METHODS = {"rigl": "RigL", "set": "SET", "static": "static", "spread": "static"}
# Conditions whose learning rates are shown: their runs differ most in the rates they
# bear.
BY_RATE = ("RigL, 90 %", "RigL, 95 %", "RigL, 97 %")


def conditions() -> str:
    """Show the accuracy after the last epoch, and what corrections add to it."""
    head = ("condition", "without, %", *(f"{arm_name(arm)}, points" for arm in ARMS))
    lines, together = [], p_together(load("studies.convergence"))
    for entry in load("studies.convergence")["conditions"]:
        name, rows = entry["condition"]["name"], by_arm(entry)
        cells = [accuracy(rows["none"])]
        for arm in ARMS:
            cells.append(gain_of(rows[arm], together[name, arm]))
        lines.append((name, *cells))
    return table(head, lines) + legend(load("studies.convergence"))


def same_rate() -> str:
    """Show gains over uncorrected runs with the same learning rate."""
    return table_at_same_rate(load("studies.convergence.same_rate"))


def pooled() -> str:
    """Show mean gains over several conditions, averaged seed by seed."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in load("studies.convergence")["conditions"]:
        condition = entry["condition"]
        on = f"{condition['network']}, {METHODS[condition['method']]}"
        groups.setdefault(on, []).append(entry)
    head = ("conditions", "of them", *(f"{arm_name(arm)}, points" for arm in ARMS))
    lines = []
    for name, entries in groups.items():
        cells = []
        for arm in ARMS:
            ends = np.mean([accuracies(one, arm) for one in entries], axis=0)
            none = np.mean([accuracies(one, "none") for one in entries], axis=0)
            gain = difference(ends, none)
            cells.append(f"{gain_of(gain)} (p {gain['p']:.2g})")
        lines.append((name, str(len(entries)), *cells))
    return table(head, lines)


def candidates() -> str:
    """Show what the other candidates add, where they were tried."""
    tried = [
        entry
        for entry in load("studies.convergence")["conditions"]
        if len(entry["arms"]) > 4
    ]
    head = ("correction", *(entry["condition"]["name"] for entry in tried))
    arms = [row["arm"] for row in tried[0]["arms"][1:]]
    together = p_together(load("studies.convergence"))
    lines = [
        (
            arm_name(arm),
            *(
                gain_of(by_arm(entry)[arm], together[entry["condition"]["name"], arm])
                for entry in tried
            ),
        )
        for arm in arms
    ]
    return table(head, lines)


def starts() -> str:
    """Show accuracy after a ninth of the epochs, and epochs to the target."""
    head = (
        *("condition", "without, %", "fan-in, points", "batch variance, points"),
        *("target, %", "epochs, fan-in", "epochs, batch variance"),
        "spread of fan-ins: without, fan-in, batch variance",
    )
    lines: list[tuple[str, ...]] = []
    for entry in load("studies.convergence")["conditions"]:
        rows = by_arm(entry)
        none, shown = rows["none"], [rows[arm] for arm in ARMS[:2]]
        early = [points(row["early_mean"], row["early_p"]) for row in shown]
        target = "-" if none["target"] is None else f"{100 * none['target']:.0f}"
        ratios = [
            "-"
            if row["epochs_ratio"] is None
            else f"x {row['epochs_ratio']:.2f} ({row['both_reach_it']})"
            for row in shown
        ]
        spreads = (f"{row['fan_in_spread']:.2f}" for row in (none, *shown))
        cells = (f"{100 * none['early_accuracy']:.1f}", *early, target, *ratios)
        lines.append((entry["condition"]["name"], *cells, ", ".join(spreads)))
    return table(head, lines)


def rates() -> str:
    """Show the tuning: accuracy by learning rate on held-out images."""
    tried = tried_in(load("studies.convergence"), BY_RATE)
    shown = {
        name: [row for row in rows if row["arm"] in ("none", *ARMS)]
        for name, rows in tried.items()
    }
    return table_of_rates(shown)


def further() -> str:
    """Show the added conditions, each arm with its chosen rate."""
    record = load("studies.convergence.further")
    together = p_together(record)
    arms = (*ARMS[:2], "fan_in_but_head")
    names = (f"{arm_name(arm)}, points (rate)" for arm in arms)
    head = ("condition", "without, % (rate)", *names)
    lines = []
    for entry in record["conditions"]:
        name, rows = entry["condition"]["name"], by_arm(entry)
        cells = [f"{accuracy(rows['none'])} ({rows['none']['rate']:g})"]
        for arm in arms:
            gain = "-"
            if arm in rows:
                gain = gain_of(rows[arm], together[name, arm])
                gain = f"{gain} ({rows[arm]['rate']:g})"
            cells.append(gain)
        lines.append((name, *cells))
    return f"{table(head, lines)}{legend(record)}"


def further_rates() -> str:
    """Show the tuning of the added conditions, at all rates that were tried."""
    record = load("studies.convergence.further")
    names = [entry["condition"]["name"] for entry in record["conditions"]]
    return table_of_rates(tried_in(record, names))


def scales() -> str:
    """Show exponents of fan-in, from the start of a run to its end."""
    (found,) = select(load("studies.neuron_scales")["tables"], kind="exponents")
    return table_of_exponents(found["rows"])


def jumps() -> str:
    """Show the effect of updates on the deviations, and the fan-in's prediction."""
    (found,) = select(load("studies.neuron_scales")["tables"], kind="jumps")
    head = ("run", "changes", "fan-in says", "measured", "share that it follows")
    lines = [
        (
            row["run"],
            str(row["changes"]),
            f"{row['said_by_fan_in']:.3f}",
            f"{row['measured']:.3f}",
            f"{row['follows']:.2f}",
        )
        for row in found["rows"]
    ]
    return table(head, lines)


PAGE = named(
    photographs.photographs,
    photographs.photograph_starts,
    photographs.photograph_same_rate,
    photographs.photograph_rates,
    photographs.least_fan_in,
    photographs.neuron_deaths,
    photographs.photograph_scales,
    conditions,
    same_rate,
    pooled,
    starts,
    rates,
    further,
    further_rates,
    candidates,
    scales,
    jumps,
)
