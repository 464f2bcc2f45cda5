"""Kill training runs with SIGKILL, over and over, and inspect their checkpoints.

    python -m studies.reliability.kills

Three trainings: a small ResNet on scanned digits with RigL and SparseOpt, a small
language model with SMET, and the ResNet in two processes that save together. Each saves
in the background every one to five steps, at random, and is killed. Of every four
kills, one comes at any time, start-up included, one soon after a completed save, and
two during a save or just after it. The next process resumes from the last checkpoint.
It compares every checkpoint it finds, bit for bit, with the same step of an
uninterrupted run, and the final state too.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from reporting import harness
from studies.reliability.interruptions import Interrupt, Outcome, Trials, kill
from studies.reliability.options import Notes, Options

# Processes on a busy machine may time out while they look for each other.
_TRIES = 5
KILLS = {"digits": 40, "language model": 40, "digits, two processes": 20}


def main(options: Options) -> None:
    """Run the program."""
    report = harness.Report("studies.reliability.kills", options)
    notes = Notes(report, options)
    rows = []
    for name, count in KILLS.items():
        trials = Trials(notes.folder / name.replace(" ", "_"), name, options.quick)
        interrupt_often(notes, trials, name, options.count_or(count), kill)
        rows.append(summary(notes, name))
    report.listing("Training runs killed by SIGKILL", rows, kind="kills")
    for what in ("lost", "corrupt", "different"):
        total = sum(row[what] for row in rows)
        report.claim(f"checkpoints {what}", total, at_most=0, kind=what)
    report.store()


def interrupt_often(
    notes: Notes,
    trials: Trials,
    name: str,
    count: int,
    interrupt: Interrupt,
    recover: Callable[[], None] = lambda: None,
    place: Path | None = None,
) -> None:
    """Interrupt a training ``count`` times, then let it run to its end.

    Args:
      notes: what was done before; it is not repeated.
      trials: runs the training.
      name: name of the training in the notes.
      count: number of interruptions.
      interrupt: interrupts the processes.
      recover: called after each interruption, before anything is read.
      place: folder of the checkpoints; ``trials.folder`` if None.
    """
    directory, log = (place or trials.folder) / "checkpoints", trials.folder / "log"
    # A study that was itself stopped starts a new training: its disk may be gone.
    _remove(directory, log)

    def interrupt_and_recover(processes, rng):
        interrupt(processes, rng)
        for process in processes:
            process.join()
        recover()

    while len(notes.select(training=name, event="interrupted")) < count:
        # Runs that ended before they could be interrupted count towards the seed too.
        seed = len(notes.select(training=name))
        outcome = trials.run_interrupted(directory, log, seed, interrupt_and_recover)
        _note(notes, name, outcome)
        if outcome.ended or outcome.unreadable:
            _remove(directory, log)
    while notes.select(training=name)[-1]["event"] != "over":
        _note(notes, name, trials.run_to_end(directory, log))
    _remove(directory, log)


def _remove(directory: Path, log: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    log.unlink(missing_ok=True)


def _note(notes: Notes, name: str, outcome: Outcome) -> None:
    """Note the outcome of a run; give up if the training keeps failing on its own."""
    if outcome.unreadable or outcome.ended:
        event = "over"
    else:
        event = "failed" if outcome.failed else "interrupted"
    notes.add({"training": name, "event": event, **outcome._asdict()})
    last = notes.select(training=name)[-_TRIES:]
    if [row["event"] for row in last] == ["failed"] * _TRIES:
        raise SystemExit(
            f"{name}: the training failed {_TRIES} times in a row with the errors "
            "above, none of them about its checkpoints; run the same command again "
            "when the machine is less busy"
        )


def summary(notes: Notes, name: str) -> dict[str, Any]:
    """Return the counts of a training as a row of the record."""
    rows = notes.select(training=name)
    interrupted = notes.select(training=name, event="interrupted")
    return {
        "training": name,
        "ended": len(interrupted),
        "inside a save": sum(row["inside"] for row in interrupted),
        "lost": sum(row["lost"] for row in rows),
        "corrupt": sum(row["unreadable"] for row in rows),
        "different": sum(row["different"] for row in rows),
        "runs to the end": sum(row["ended"] for row in rows),
    }


if __name__ == "__main__":
    harness.start(main, __doc__, Options)
