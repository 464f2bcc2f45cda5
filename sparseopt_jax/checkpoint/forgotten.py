"""Completion of the saves of Checkpoints that are never closed."""

import atexit
import concurrent.futures.thread  # noqa: F401, ends its pools after what follows
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import Protocol

_finishing: set[threading.Thread] = set()


class _Manager(Protocol):
    def wait_until_finished(self) -> None: ...


_managers: "weakref.WeakSet[_Manager]" = weakref.WeakSet()


def finish(manager: _Manager, release: Callable[[], None]) -> None:
    """Wait for a save in another thread, then release what it needed.

    An error of the save is reported as the thread's.

    Args:
      manager: the manager of the save.
      release: releases what the save needed.

    Note:
      Objects are collected in any thread, even in one that the save is waiting for, so
      that waiting there might never end.
    """

    def finished():
        try:
            manager.wait_until_finished()
        finally:
            discard(manager)
            release()
            _finishing.discard(thread)

    thread = threading.Thread(target=finished, name="forgotten_save")
    _finishing.add(thread)
    thread.start()


def wait_for_all() -> None:
    """Wait for the saves of all forgotten Checkpoints of this process."""
    for thread in list(_finishing):
        thread.join()


def finish_at_exit(manager: _Manager) -> None:
    """Let the process end only when the save of a manager is complete."""
    _managers.add(manager)


def discard(manager: _Manager) -> None:
    """Let the process end without this manager, whose last save has ended."""
    _managers.discard(manager)


def _finish_all() -> None:
    wait_for_all()
    for manager in list(_managers):
        try:
            manager.wait_until_finished()
        except Exception:  # the other saves must still complete
            traceback.print_exc()


# Functions of atexit are called when the thread pools that a save needs have ended.
getattr(threading, "_register_atexit", atexit.register)(_finish_all)
