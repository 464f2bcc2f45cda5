"""The methods of the literature, for tables, tests and benchmarks."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

_Make = TypeVar("_Make", bound=Callable[..., Any])


class Method(NamedTuple):
    """A method of the literature.

    Attributes:
      make: the public function.
      title: its authors' name for it.
      arxiv: the arXiv identifier of its paper; empty if it has none.
    """

    make: Callable[..., Any]
    title: str
    arxiv: str


# By the public function's name; filled as the methods' modules are imported.
METHODS: dict[str, Method] = {}


def method(title: str, arxiv: str = "") -> Callable[[_Make], _Make]:
    """Add a function to the catalogue of methods.

    Args:
      title: the authors' name for the method.
      arxiv: the arXiv identifier of its paper; empty if it has none.

    Returns:
      The decorator, which returns the function unchanged.
    """

    def enter(make: _Make) -> _Make:
        METHODS[make.__name__] = Method(make, title, arxiv)
        return make

    return enter
