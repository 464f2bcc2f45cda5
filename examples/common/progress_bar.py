"""A progress bar on the console."""

from rich import progress
from rich.console import Console


def progress_bar(console: Console) -> progress.Progress:
    """Return a live bar that shows the fraction done, time elapsed and time left."""
    return progress.Progress(
        progress.TextColumn("{task.description:32}"),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=console.quiet,
    )
