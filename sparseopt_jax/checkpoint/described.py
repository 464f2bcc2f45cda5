"""Descriptions of functions and settings as JSON, the same in every process."""

import dataclasses
import functools
import json
import sys
import types
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.core import Tracer

from sparseopt_jax.checkpoint.record_names import NAMES
from sparseopt_jax.tracing.transformation_links import code_of, variables_of
from sparseopt_jax.trees.prng_keys import is_typed

# Nothing is described below this depth, where only implementation details are left.
_DEPTH = 6
# The functions of these are described by names and closures, those of users by their
# instructions too.
_LIBRARIES = ("jax", "optax", "flax", "sparseopt_jax", "numpy", "functools")
_LONG = 64  # largest array whose entries are written one by one


# Marks values that cannot be described and therefore not be compared.
_UNKNOWN = "unknown"
_CODE = "code of Python"


def _nothing(name: str, value: Any) -> bool:
    del name, value
    return False


def describe(
    value: Any, leaves_out: Callable[[str, Any], bool] = _nothing, depth: int = 0
) -> Any:
    """Describe a value by numbers, strings, lists and dictionaries of them.

    Functions are described by their names, by the variables in their closures and,
    unless they belong to a library, by their instructions: two lambdas differ, but the
    same lambda in another process does not. Dataclasses are described by their fields,
    under the names of ``record_names`` if it has them. An object with an attribute
    ``record`` is described under that name.

    Args:
      value: any value.
      leaves_out: called with the name and value of each part of functions and
        collections; True omits the part.
      depth: the depth of the value inside another one.

    Returns:
      The description. PRNG keys and objects that cannot be read are only described as
      unknown.

    Examples:
      >>> import functools, optax
      >>> describe(functools.partial(int, base=2))
      {'function': 'int', 'base': 2}
      >>> describe(optax.linear_schedule(1.0, 0.0, 10))["transition_steps"]
      10
      >>> describe(object())
      {'unknown': 'object'}
    """
    if depth > _DEPTH or isinstance(value, Tracer):
        return {_UNKNOWN: type(value).__name__}
    inner = functools.partial(describe, leaves_out=leaves_out, depth=depth + 1)

    def items(held):
        return {
            str(key): inner(part)
            for key, part in held.items()
            if not isinstance(part, types.ModuleType) and not leaves_out(str(key), part)
        }

    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        return _array(value)
    if isinstance(value, np.dtype | type):
        return getattr(value, "__name__", None) or str(value)
    if isinstance(value, Mapping):
        return items(value)
    if isinstance(value, set | frozenset):
        return sorted(map(str, map(inner, value)))
    if isinstance(value, tuple | list):
        return [inner(part) for part in value]
    name = getattr(value, "record", None)
    if name is not None and not callable(name) and not isinstance(value, type):
        return _named(inner(name), value, items)
    if isinstance(value, functools.partial):
        return _partial(value, inner, items)
    if code_of(value) is not None or isinstance(value, types.BuiltinFunctionType):
        return _function(value, inner, items)
    if dataclasses.is_dataclass(value):
        kind, fields = named_fields(value)
        return {"is": kind, **items(fields)}
    if isinstance(value, complex | bytes):
        return repr(value)
    if type(value).__module__.split(".")[0] == "optax":
        return {"function": type(value).__name__, **items(vars(value))}
    return {_UNKNOWN: type(value).__name__}


def named_fields(value: Any) -> tuple[str, dict[str, Any]]:
    """Return the kind of a dataclass and its fields, both under the record's names."""
    kind, names = NAMES.get(type(value), (type(value).__name__, {}))
    fields = {
        names.get(field.name, field.name): getattr(value, field.name)
        for field in dataclasses.fields(value)
    }
    return kind, fields


def _named(name: Any, value: Any, items: Any) -> Any:
    if not dataclasses.is_dataclass(value) or not isinstance(name, str):
        return name
    _, fields = named_fields(value)
    fields.pop("record", None)
    return {"is": name, **items(fields)} if fields else name


def _array(value: Any) -> Any:
    if isinstance(value, jax.Array) and (
        is_typed(value) or not value.is_fully_addressable
    ):
        return {_UNKNOWN: str(value.dtype)}
    array = np.asarray(value)
    if array.dtype == object:
        return {_UNKNOWN: "object"}
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
    """Return the key of a function's instructions, which depend on Python's version."""
    return f"{_CODE} {sys.version_info[0]}.{sys.version_info[1]}"


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


class Difference(NamedTuple):
    """A difference between two descriptions.

    Attributes:
      name: the innermost part that differs.
      saved: its short description in the checkpoint.
      given: its short description in this run.
      kind: ``"differs"``; ``"missing"`` if only one of them has the part, or
        ``"unknown"`` if they cannot be compared.
    """

    name: str
    saved: Any
    given: Any
    kind: str

    def __str__(self) -> str:
        return f"{self.name}: {self.saved} in the checkpoint, {self.given} in this run"


def compare(name: str, saved: Any, given: Any) -> Iterator[Difference]:
    """Compare two descriptions, down to the innermost parts that differ.

    Args:
      name: the name of the described value.
      saved: its description in the checkpoint.
      given: its description in this run.

    Yields:
      The differences.

    Examples:
      >>> one, other = {"decay": 0.9, "nesterov": True}, {"decay": 0.8}
      >>> [f"{part.name} {part.kind}" for part in compare("trace", one, other)]
      ['trace.decay differs', 'trace.nesterov missing']
    """
    if _is_unknown(saved) or _is_unknown(given):
        yield Difference(name, _short(saved), _short(given), "unknown")
        return
    saved, given = _alike(saved, given), _alike(given, saved)
    if isinstance(saved, Mapping) and isinstance(given, Mapping):
        yield from _compare_parts(name, saved, given)
    elif _holds_mappings(saved, given):
        for place, (one, other) in enumerate(zip(saved, given, strict=True)):
            yield from compare(f"{name}[{place}]", one, other)
    # NaN differs from itself, but not from itself as text.
    elif saved != given and json.dumps(saved) != json.dumps(given):
        yield Difference(name, _short(saved), _short(given), "differs")


def _compare_parts(
    name: str, saved: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[Difference]:
    # Another Python has other instructions: then compare only names and closures.
    codes = [[x for x in parts if x.startswith(_CODE)] for parts in (saved, given)]
    skipped = set() if codes[0] == codes[1] else {*codes[0], *codes[1]}
    if skipped:
        one, other = (", ".join(found) or "nothing" for found in codes)
        yield Difference(f"{name}.code", one, other, "unknown")
    for key in [*saved, *(key for key in given if key not in saved)]:
        part = f"{name}.{key}" if name else key
        if key in skipped:
            continue
        if key in saved and key in given:
            yield from compare(part, saved[key], given[key])
        else:
            one, other = (_short(parts.get(key, "nothing")) for parts in (saved, given))
            yield Difference(part, one, other, "missing")


def _is_unknown(described: Any) -> bool:
    return isinstance(described, Mapping) and _UNKNOWN in described


def _alike(described: Any, other: Any) -> Any:
    """Describe a function without a closure like a function with one."""
    is_function = isinstance(other, Mapping) and "function" in other
    if isinstance(described, str) and is_function:
        return {"function": described}
    return described


def _holds_mappings(*lists: Any) -> bool:
    """Tell whether these are lists of equal length, of descriptions with parts."""
    return (
        all(isinstance(x, list) and x for x in lists)
        and len({len(x) for x in lists}) == 1
        and all(isinstance(part, Mapping) for x in lists for part in x)
    )


def _short(described: Any) -> Any:
    if not isinstance(described, Mapping):
        return described
    for key in ("function", _UNKNOWN):
        if key in described:
            return described[key]
    if "is" in described:
        held = [f"{key}={_short(x)}" for key, x in described.items() if key != "is"]
        return f"{described['is']}({', '.join(held)})"
    return described
