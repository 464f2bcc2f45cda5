"""How far a program is, on its console."""

from rich import progress
from rich.console import Console


def progress_bar(console: Console) -> progress.Progress:
    """Live: what is done, how much of all, time gone and time to go."""
    return progress.Progress(
        progress.TextColumn("{task.description:32}"),
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        disable=console.quiet,
    )
