"""What functions and settings are, as JSON has it, the same in any process."""

import dataclasses
import functools
import sys
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from sparseopt_jax.tracing.transformation_links import code_of, variables_of

# Nothing is described below this depth: by then it is how something is made.
_DEPTH = 6
# Whose code is told by its name and what it holds; that of users by its instructions.
_LIBRARIES = ("jax", "optax", "flax", "sparseopt_jax", "numpy", "functools")
_LONG = 64  # entries of an array that are written one by one


# What cannot be described: two of them may be the same or not.
UNKNOWN = object()


def _nothing(name: str, value: Any) -> bool:
    del name, value
    return False


def describe(
    value: Any, leaves_out: Callable[[str, Any], bool] = _nothing, depth: int = 0
) -> Any:
    """Describes a value by numbers, strings, lists and dictionaries of them.

    Functions are told by their names, by what they hold from where they were made and,
    unless they are a library's, by their instructions: so two lambdas differ, and the
    same one in another process does not. An object that has an attribute ``record``
    is called that.

    Args:
      value: anything.
      leaves_out: told what functions and collections hold, by name; True leaves it out.
      depth: how far inside another value it was found.

    Returns:
      The description; ``UNKNOWN`` for PRNG keys and objects that say nothing.

    Examples:
      >>> import functools, optax
      >>> describe(functools.partial(int, base=2))
      {'function': 'int', 'base': 2}
      >>> describe(optax.linear_schedule(1.0, 0.0, 10))["transition_steps"]
      10
    """
    if depth > _DEPTH or isinstance(value, Tracer | types.ModuleType):
        return UNKNOWN
    inner = functools.partial(describe, leaves_out=leaves_out, depth=depth + 1)

    def items(held):
        found = {
            str(key): inner(part)
            for key, part in held.items()
            if not leaves_out(str(key), part)
        }
        return {key: part for key, part in found.items() if part is not UNKNOWN}

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _array(value)
    if isinstance(value, np.dtype | type):
        return getattr(value, "__name__", None) or str(value)
    if isinstance(value, Mapping):
        return items(value)
    if isinstance(value, set | frozenset):
        return sorted(str(part) for part in map(inner, value) if part is not UNKNOWN)
    if isinstance(value, tuple | list):
        found = [inner(part) for part in value]
        return UNKNOWN if any(part is UNKNOWN for part in found) else found
    name = getattr(value, "record", None)
    if name is not None and not callable(name) and not isinstance(value, type):
        return _named(inner(name), value, items)
    if isinstance(value, functools.partial):
        return _partial(value, inner, items)
    if code_of(value) is not None or isinstance(value, types.BuiltinFunctionType):
        return _function(value, inner, items)
    if dataclasses.is_dataclass(value):
        return _dataclass(value, items)
    if isinstance(value, complex | bytes):
        return repr(value)
    if type(value).__module__.split(".")[0] == "optax":
        return {"function": type(value).__name__, **items(vars(value))}
    return UNKNOWN


def _named(name: Any, value: Any, items: Any) -> Any:
    if not dataclasses.is_dataclass(value) or not isinstance(name, str):
        return name
    fields = items(
        {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.name != "record"
        }
    )
    return {"function": name, **fields} if fields else name


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array) and (
        jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
        or not value.is_fully_addressable
    ):
        return UNKNOWN
    array = np.asarray(value)
    if array.dtype == object:
        return UNKNOWN
    if array.dtype.kind in "biuf" and array.size <= _LONG:
        return array.tolist()
    shape = ",".join(map(str, array.shape))
    crc = zlib.crc32(np.ascontiguousarray(array).tobytes())
    return f"{array.dtype}[{shape}] of checksum {crc:08x}"


def _partial(value: functools.partial, inner: Any, items: Any) -> Any:
    function = inner(value.func)
    if not isinstance(function, dict):
        function = {"function": function}
    return function | items(dict(enumerate(value.args)) | value.keywords)


def _function(value: Any, inner: Any, items: Any) -> Any:
    name = getattr(value, "__qualname__", type(value).__name__)
    held = items(variables_of(value))
    if isinstance(value, types.MethodType):
        held |= items({"self": value.__self__})
    code, module = code_of(value), getattr(value, "__module__", None) or ""
    if code is not None and module.split(".")[0] not in _LIBRARIES:
        defaults = inner(getattr(value, "__defaults__", None) or ())
        held |= {instructions(): _checksum(code, defaults)}
    return {"function": name, **held} if held else name


def instructions() -> str:
    """Names what compares a function's code: another Python has other instructions."""
    return "code of Python {}.{}".format(*sys.version_info)


def _checksum(code: types.CodeType, defaults: Any) -> str:
    def parts(code):
        constants = [
            parts(constant) if isinstance(constant, types.CodeType) else repr(constant)
            for constant in code.co_consts
            # The order of a set differs from process to process.
            if not isinstance(constant, frozenset)
        ]
        sets = [sorted(map(repr, x)) for x in code.co_consts if type(x) is frozenset]
        return repr((code.co_code, constants, sets, code.co_names))

    return f"{zlib.crc32(f'{parts(code)}{defaults}'.encode()):08x}"


def _dataclass(value: Any, items: Any) -> Any:
    fields = {
        field.name: getattr(value, field.name) for field in dataclasses.fields(value)
    }
    # Not what else it may hold: the address of a function is another in each process.
    if all(map(_is_plain, fields.values())):
        return repr(value)
    return {"function": type(value).__name__, **items(fields)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def same(saved: Any, given: Any) -> bool:
    """Whether two descriptions may be of the same thing.

    What only one of them has is not compared: it was not known when, or to the Python
    with which, the other was made.

    >>> same({"function": "f", "b1": 0.9}, "f"), same({"b1": 0.9}, {"b1": 0.8})
    (True, False)
    """
    if isinstance(saved, dict) and isinstance(given, dict):
        return all(same(saved[key], given[key]) for key in saved.keys() & given.keys())
    if isinstance(saved, dict) and isinstance(given, str):
        return saved.get("function") == given
    if isinstance(given, dict) and isinstance(saved, list):
        saved = saved[0] if saved else None  # a partial's function, in format 1
    if isinstance(given, dict) and isinstance(saved, str):
        return given.get("function") == saved
    if isinstance(saved, list) and isinstance(given, list):
        return len(saved) == len(given) and all(map(same, saved, given))
    return saved == given


def unlike(name: str, saved: Any, given: Any) -> Iterator[tuple[str, Any, Any]]:
    """The innermost parts that differ, each with its name and both descriptions.

    >>> list(unlike("trace", {"decay": 0.9, "nesterov": True}, {"decay": 0.8}))
    [('trace.decay', 0.9, 0.8)]
    """
    if isinstance(saved, Mapping) and isinstance(given, Mapping):
        for key, value in saved.items():
            if key in given:
                yield from unlike(f"{name}.{key}", value, given[key])
    elif not same(saved, given):
        yield name, _short(saved), _short(given)


def _short(value: Any) -> Any:
    return value.get("function", value) if isinstance(value, Mapping) else value
