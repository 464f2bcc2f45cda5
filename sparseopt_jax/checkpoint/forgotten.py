"""Completion of the saves of Checkpoints that were neither closed nor kept."""

import threading
from collections.abc import Callable

_finishing: set[threading.Thread] = set()


def finish(wait: Callable[[], None], release: Callable[[], None]) -> None:
    """Wait for a save in another thread, then release what it needed.

    An error of the save is reported as the thread's.

    Args:
      wait: returns when the save is complete, or raises its error.
      release: releases what the save needed.

    Note:
      Objects are collected in any thread, even in one that the save is waiting for, so
      that waiting there might never end.
    """

    def finished():
        try:
            wait()
        finally:
            release()
            _finishing.discard(thread)

    thread = threading.Thread(target=finished, name="forgotten_save")
    _finishing.add(thread)
    thread.start()


def wait_for_all() -> None:
    """Wait for the saves of all forgotten Checkpoints of this process."""
    for thread in list(_finishing):
        thread.join()
