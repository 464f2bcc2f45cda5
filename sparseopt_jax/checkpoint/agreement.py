"""Agreement between the processes of one run before they act together.

With one process nothing is sent. Otherwise all processes must make the same calls; if
their arguments differ, all of them raise.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

_LONGEST = 4000  # bytes of a message that are sent


def together(action: Callable[[], T]) -> T:
    """Run an action in every process; if it fails in one of them, all raise.

    Args:
      action: the action; may fail in some processes, and must not wait for others.

    Returns:
      The result of the action.

    Raises:
      Exception: if the action failed in this process: its exception.
      ValueError: if the action failed in another process, with the message from there.
    """
    if jax.process_count() == 1:
        return action()
    result, error = None, None
    try:
        result = action()
    except Exception as raised:  # raised below, once the others know
        error = raised
    messages = _gathered("" if error is None else str(error) or repr(error))
    if error is not None:
        raise error
    for process, message in enumerate(messages):
        if message:
            raise ValueError(f"process {process} of this run: {message}")
    return result  # pyright: ignore[reportReturnType]


def require_same(values: Mapping[str, Any], advice: str) -> None:
    """Check that all processes hold the same values.

    Args:
      values: JSON values by name; mappings in them are compared key by key.
      advice: what to do about a difference.

    Raises:
      ValueError: on every process, with the first value that differs.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(values, sort_keys=True)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    if (digests == digests[0]).all():
        return
    first = json.loads(_of_first(text))
    messages = _gathered(_first_difference(first, json.loads(text)))
    message = next(filter(None, messages))
    raise ValueError(
        f"the processes of this run hold different values: {message}. {advice}"
    )


def of_first(value: T) -> T:
    """Return the value of process 0, which must be JSON."""
    if jax.process_count() == 1:
        return value
    return json.loads(_of_first(json.dumps(value)))


def _of_first(text: str) -> str:
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size)))
    padded = np.resize(data, size) if data.size else np.zeros(size, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))).decode()


def _gathered(message: str) -> list[str]:
    """Return the message of each process, in order."""
    data = message.encode()[:_LONGEST]
    padded = np.frombuffer(data.ljust(_LONGEST, b"\0"), np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [bytes(row).rstrip(b"\0").decode(errors="ignore") for row in rows]


def _first_difference(first: Any, second: Any, name: str = "") -> str:
    """Describe the first difference between a value and process 0's; empty if none."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        for key in [*first, *(key for key in second if key not in first)]:
            found = _first_difference(
                first.get(key, "nothing"),
                second.get(key, "nothing"),
                f"{name} {key}" if name else key,
            )
            if found:
                return found
        return ""
    # As text, because NaN differs from itself.
    if json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True):
        return ""
    return f"{name} is {first} in process 0, {second} in process {jax.process_index()}"
