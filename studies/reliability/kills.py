"""Ends trainings by SIGKILL, again and again, and looks at what they have left.

    python -m studies.reliability.kills

A small ResNet on scanned digits with RigL and SparseOpt, a small language model with
SMET, and the ResNet in two processes that save together. Each saves at random steps,
one to five apart, in the background, and is killed at a random moment: at any, start-up
included; at any once it has saved; or, as half of them, as soon as its first to fourth
save is under way. The next process goes on from the last checkpoint. It compares every
checkpoint it finds with the same step of a run that nothing has interrupted, bit by
bit, and so the end.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reporting import harness
from studies.reliability.lives import Found, Trials, kill
from studies.reliability.options import Notes, Options

# Processes on a busy machine may not find each other in time.
_TRIES = 5
KILLS = {"digits": 40, "language model": 40, "digits, two processes": 20}


def main(options: Options) -> None:
    """Runs the program."""
    report = harness.Report("studies.reliability.kills", options)
    notes = Notes(report, options)
    rows = []
    for name, count in KILLS.items():
        trials = Trials(notes.folder / name.replace(" ", "_"), name, options.quick)
        end_often(notes, trials, name, options.count_or(count), kill)
        rows.append(summary(notes, name))
    report.listing("Trainings ended by SIGKILL", rows, kind="kills")
    for what in ("lost", "corrupt", "different"):
        total = sum(row[what] for row in rows)
        report.claim(f"checkpoints {what}", total, at_most=0, kind=what)
    report.store()


def end_often(
    notes: Notes,
    trials: Trials,
    name: str,
    count: int,
    end: Callable[[list[Any], Any], None],
    after: Callable[[], None] = lambda: None,
    place: Path | None = None,
) -> None:
    """Ends a training until it has been ended so often, then lets it end by itself.

    Args:
      notes: what has been done is not done again.
      trials: of the training.
      name: that the rows have.
      count: how often.
      end: ends its processes.
      after: called after each end, before anything is read.
      place: where the checkpoints lie; beside everything else if None.
    """
    directory, log = (place or trials.folder) / "checkpoints", trials.folder / "log"

    def end_and_mend(processes, rng):
        end(processes, rng)
        for process in processes:
            process.join()
        after()

    while len(notes.select(training=name, event="end")) < count:
        # Also those that were over before they could be ended.
        seed = len(notes.select(training=name))
        found = trials.life(directory, log, seed, end_and_mend)
        _note(notes, name, found)
        if found.ended or found.unreadable:
            _remove(directory, log)
    while notes.select(training=name)[-1]["event"] != "over":
        _note(notes, name, trials.finish(directory, log))
    _remove(directory, log)


def _remove(directory: Path, log: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    log.unlink(missing_ok=True)


def _note(notes: Notes, name: str, found: Found) -> None:
    """Notes a life, and gives up if one after the other fails by itself."""
    if found.unreadable or found.ended:
        event = "over"
    else:
        event = "failed" if found.failed else "end"
    notes.add({"training": name, "event": event, **found._asdict()})
    last = notes.select(training=name)[-_TRIES:]
    if [row["event"] for row in last] == ["failed"] * _TRIES:
        raise SystemExit(
            f"{name}: the training has failed {_TRIES} times in a row, as said above, "
            "and not for its checkpoints; start again when the machine has less to do"
        )


def summary(notes: Notes, name: str) -> dict[str, Any]:
    """What has become of a training, as a row."""
    rows = notes.select(training=name)
    ends = notes.select(training=name, event="end")
    return {
        "training": name,
        "ended": len(ends),
        "inside a save": sum(row["inside"] for row in ends),
        "lost": sum(row["lost"] for row in rows),
        "corrupt": sum(row["unreadable"] for row in rows),
        "different": sum(row["different"] for row in rows),
        "runs to the end": sum(row["ended"] for row in rows),
    }


if __name__ == "__main__":
    harness.start(main, __doc__, Options)
