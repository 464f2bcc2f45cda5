"""Checked reads of headers: nothing that a file says is used before it is checked."""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

_MOST_AXES = 64  # NumPy's limit
_LARGEST = 2**59  # elements, so that their bytes fit in 63 bits in every dtype


class Field(NamedTuple):
    """A field of a dictionary in a header.

    Attributes:
      expected: its values, in words.
      is_valid: returns whether a value, of any type, is one of them.
      is_optional: whether the field may be missing.
    """

    expected: str
    is_valid: Callable[[object], bool]
    is_optional: bool = False


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _LARGEST


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= _MOST_AXES
        and all(map(_is_size, value))
        # NumPy computes this product without the zeros, too.
        and math.prod(size or 1 for size in value) < _LARGEST
    )


def _is_range(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_size, value))


def _is_share(value: object) -> bool:
    return type(value) is float and 0 <= value <= 1


TEXT = Field("a string", lambda value: isinstance(value, str))
SIZE = Field("a size", _is_size)
SHARE = Field("a number in [0, 1]", _is_share)
SHAPE = Field("a shape", _is_shape)
RANGE = Field("a start and an end", _is_range)
DICTIONARY = Field("a dictionary", lambda value: isinstance(value, dict))


def one_of(names: Mapping[str, Any]) -> Field:
    """Return a field for the keys of a dictionary."""
    return Field(
        f"one of {', '.join(map(repr, names))}",
        lambda value: isinstance(value, str) and value in names,
    )


def read_json(text: str | bytes | bytearray) -> Any:
    """Parse JSON.

    Args:
      text: a string, or its bytes in UTF-8.

    Returns:
      Its value.

    Raises:
      ValueError: if it is not JSON, which has no NaN and Infinity, or a name occurs
        twice in a dictionary.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        return json.loads(
            text, object_pairs_hook=_without_twins, parse_constant=_not_a_number
        )
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is not JSON: {error}") from None


def check_fields(header: object, fields: Mapping[str, Field], where: str) -> None:
    """Raise unless a value from a header is a dictionary with valid fields.

    Args:
      header: the value. It may have fields that are not checked.
      fields: the fields by name.
      where: what the value describes, for the error.

    Raises:
      ValueError: with the first field that is missing or invalid.
    """
    if not isinstance(header, dict):
        raise ValueError(f"{where} must be a dictionary, got {header!r:.100}")
    for name, field in fields.items():
        if name not in header:
            if field.is_optional:
                continue
            raise ValueError(f"{where} lacks {name!r}")
        if not field.is_valid(header[name]):
            raise ValueError(
                f"{where} has {name} {header[name]!r:.100}, which is not "
                f"{field.expected}"
            )


def array_in(
    data: bytearray, start: int, stop: int, shape: list[int], dtype: np.dtype
) -> np.ndarray:
    """Return the array that a part of a file holds, which shares its memory.

    Args:
      data: the contents of the file.
      start: the place of its first byte.
      stop: the place after its last.
      shape: the shape according to the file.
      dtype: the dtype according to the file.

    Raises:
      ValueError: if the shape is not valid, or needs another number of bytes; or if the
        bytes of bools are not 0 or 1.
    """
    check_fields({"shape": shape}, {"shape": SHAPE}, "the header")
    needed = math.prod(shape) * dtype.itemsize
    if needed != stop - start:
        raise ValueError(
            f"the header describes {needed} bytes of {dtype}, the file has "
            f"{stop - start}"
        )
    x = np.ndarray(tuple(shape), dtype, data, start)
    if dtype == np.bool_ and (x.view(np.uint8) > 1).any():
        raise ValueError("bytes that are not bools are stored as such")
    return x


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _not_a_number(text: str) -> None:
    raise ValueError(f"{text} is not a number")
