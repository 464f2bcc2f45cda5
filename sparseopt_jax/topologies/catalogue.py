"""The methods of the literature, for tables, tests and benchmarks."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

_Make = TypeVar("_Make", bound=Callable[..., Any])


class Method(NamedTuple):
    """One method.

    Attributes:
      make: the public function.
      title: what its authors call it.
      arxiv: the number of its paper on arXiv; empty where it has none.
    """

    make: Callable[..., Any]
    title: str
    arxiv: str


# By the public function's name, as far as their modules have been imported.
METHODS: dict[str, Method] = {}


def method(title: str, arxiv: str = "") -> Callable[[_Make], _Make]:
    """Enter a function into the catalogue of methods.

    Args:
      title: what its authors call it.
      arxiv: the number of its paper on arXiv.

    Returns:
      The decorator, which returns the function as it is.
    """

    def enter(make: _Make) -> _Make:
        METHODS[make.__name__] = Method(make, title, arxiv)
        return make

    return enter
