"""Arguments that one method hands on to another, checked under the first one's name."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any


def check_options(
    name: str,
    make: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    given: tuple[str, ...] = (),
    unfit: Mapping[str, str] | None = None,
) -> None:
    """Raises unless ``make`` can be called with these options.

    Python's own message would name ``make``, which the user has not called.

    Args:
      name: the method that the user has called.
      make: the function that takes its options.
      options: the options by name.
      given: arguments of ``make`` that the method passes by itself.
      unfit: arguments of ``make`` that the method does not take, and why.

    Raises:
      TypeError: for an option that ``make`` has not, that the method sets by itself,
        or that is missing.

    Examples:
      >>> check_options("mine", lambda sparsity, *, every: None, {"evry": 3})
      Traceback (most recent call last):
      ...
      TypeError: mine takes no argument 'evry', got evry=3; it takes every
    """
    unfit = unfit or {}
    parameters = {
        parameter.name: parameter
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name not in given
    }
    taken = [option for option in parameters if option not in unfit]
    for option, value in options.items():
        if option in unfit:
            raise TypeError(f"{name} takes no {option}: {unfit[option]}")
        if option not in parameters:
            raise TypeError(
                f"{name} takes no argument {option!r}, got {option}={value!r}; it "
                f"takes {', '.join(taken)}"
            )
    missing = [
        option
        for option in taken
        if parameters[option].default is inspect.Parameter.empty
        and option not in options
    ]
    if missing:
        raise TypeError(f"{name} needs the arguments {', '.join(missing)}")
