"""Takes the disk away from trainings that save, as a power failure does.

    python -m studies.reliability.power

As ``studies.reliability.kills``, but the checkpoints lie on an ext4 file system in a
file, which is shut down at the random moment without a flush of anything: what the
program has not flushed itself is lost. Then the processes are killed, the file system
is mounted again, and the next one goes on with what is there. Needs root, and Linux.
"""

from typing import Any

from reporting import harness
from studies.reliability.images import Image, can_mount
from studies.reliability.kills import end_often, summary
from studies.reliability.lives import Trials
from studies.reliability.options import Notes, Options

CUTS = {"digits": 10, "language model": 10}
# Enough for a few checkpoints.
_MEGABYTES = 64


def main(options: Options) -> None:
    """Runs the program."""
    if not can_mount():
        raise SystemExit("Only root may mount a file system and shut it down.")
    report = harness.Report("studies.reliability.power", options)
    notes = Notes(report, options)
    rows = []
    for name, count in CUTS.items():
        folder = notes.folder / name.replace(" ", "_")
        trials = Trials(folder, name, options.quick)
        image = Image(folder, _MEGABYTES)
        with image.mounted() as place:

            def cut(processes: list[Any], rng: Any, image: Image = image) -> None:
                del rng
                image.cut()
                for process in processes:
                    process.kill()

            count = options.count_or(count)
            end_often(notes, trials, name, count, cut, image.mount_again, place)
        rows.append(summary(notes, name))
    report.listing("Trainings whose disk was taken away", rows, kind="cuts")
    for what in ("lost", "corrupt", "different"):
        total = sum(row[what] for row in rows)
        report.claim(f"checkpoints {what}", total, at_most=0, kind=what)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__, Options)
