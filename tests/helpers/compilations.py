"""Programs that JAX compiles while something runs."""

import contextlib
import logging

import jax


class _Names(logging.Handler):
    def __init__(self):
        super().__init__()
        self.found = []

    def emit(self, record):
        words = record.getMessage().split()
        if words[:1] == ["Compiling"]:
            self.found.append(words[1].removeprefix("jit(").removesuffix(")"))


@contextlib.contextmanager
def compilations():
    """Yield a list that receives the name of every program that is compiled.

    It reads JAX's log: a compiled function's own count is kept in a cache that all
    tests share, and that evicts entries.
    """
    names, logger = _Names(), logging.getLogger("jax")
    logger.addHandler(names)
    try:
        with jax.log_compiles():
            yield names.found
    finally:
        logger.removeHandler(names)
