"""Cut the power of the disk to which training runs save.

    python -m studies.reliability.power

This is ``studies.reliability.kills`` with the checkpoints on an ext4 file system in a
file. At the random moment the file system is shut down without flushing anything, so
that everything the program has not flushed itself is lost, and the processes are
killed. The file system is then mounted again, and the next process resumes from what it
finds there. Needs root, and Linux.
"""

from typing import Any

from reporting import harness
from studies.reliability.disk_images import DiskImage, can_mount
from studies.reliability.interruptions import Trials
from studies.reliability.kills import interrupt_often, summary
from studies.reliability.options import Notes, Options

CUTS = {"digits": 20, "language model": 20}
# Enough for a few checkpoints.
_MEGABYTES = 64


def main(options: Options) -> None:
    """Run the program."""
    if not can_mount():
        raise SystemExit("Only root may mount a file system and shut it down.")
    report = harness.Report("studies.reliability.power", options)
    notes = Notes(report, options)
    rows = []
    for name, count in CUTS.items():
        folder = notes.folder / name.replace(" ", "_")
        trials = Trials(folder, name, options.quick)
        disk = DiskImage(folder, _MEGABYTES)
        with disk.mounted() as place:

            def cut(processes: list[Any], rng: Any, disk: DiskImage = disk) -> None:
                del rng
                disk.cut_power()
                for process in processes:
                    process.kill()

            count = options.count_or(count)
            interrupt_often(notes, trials, name, count, cut, disk.restart, place)
        rows.append(summary(notes, name))
    report.listing("Training runs whose disk lost power", rows, kind="cuts")
    for what in ("lost", "corrupt", "different"):
        total = sum(row[what] for row in rows)
        report.claim(f"checkpoints {what}", total, at_most=0, kind=what)
    report.store()


if __name__ == "__main__":
    harness.start(main, __doc__, Options)
