"""Steps that are compiled together and timed in turn.

Compiling takes most of the available time on an accelerator. The first step is compiled
alone, since it tries out which kernels are fast; the others have the same products,
reuse its choice, and are compiled in parallel. Steps donate their inputs, as in
training. Several are started before waiting for the last, so that Python's overhead per
step is hidden as far as it is in training.
"""

import concurrent.futures
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from benchmarks.gpu.part import Budget, Report
from reporting import harness

ROUNDS = 20
BLOCK_SECONDS, MOST_STEPS = 0.1, 20
# Every table is measured at least this long: compiling may have taken all the time.
LEAST_SECONDS = 3.0

Reset = Callable[[Any], Any]


@dataclasses.dataclass
class Arm:
    """A step with its inputs.

    Attributes:
      name: its name in tables.
      step: ``step(carry, *inputs) -> carry``, to be compiled.
      carry: the carry of the first step; it is donated.
      inputs: further inputs of every step.
      donates: whether a step donates the carry. If not, nothing is carried over.
      about: further entries of its row in the table of bytes.
      program: the step, once it is compiled.
      compile_s: seconds of compilation.
    """

    name: str
    step: Callable[..., Any]
    carry: Any
    inputs: tuple = ()
    donates: bool = True
    about: dict[str, Any] = dataclasses.field(default_factory=dict)
    program: Any = None
    compile_s: float = 0.0

    def lower(self) -> Any:
        """Trace the step."""
        step = jax.jit(self.step, donate_argnums=0 if self.donates else ())
        return step.lower(self.carry, *self.inputs)

    def block(
        self, steps: int, before: Reset = lambda carry: carry
    ) -> Callable[[], Any]:
        """Return a function that takes steps, each from the result of the previous one.

        Args:
          steps: number of steps.
          before: changes the carry of the first of them.
        """

        def run() -> Any:
            result = given = before(self.carry)
            for _ in range(steps):
                result = self.program(given, *self.inputs)
                given = result if self.donates else given
            self.carry = given
            return result

        return run

    def row(self) -> dict[str, Any]:
        """Return the compiled program's bytes, according to XLA, and compile time."""
        memory = self.program.memory_analysis()
        new = memory.output_size_in_bytes - memory.alias_size_in_bytes
        given, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
        return {
            "name": self.name,
            **self.about,
            "given_bytes": given,
            "temporary_bytes": temporary,
            "peak_bytes": given + new + temporary,
            "compile_s": self.compile_s,
        }


def build(
    report: Report, makers: Iterable[tuple[str, Callable[[], Arm]]], budget: Budget
) -> list[Arm]:
    """Build and compile arms.

    Arms that fail are reported and left out, and so are arms that have not started to
    compile when the time is up.

    Args:
      report: where failures are reported.
      makers: functions that build each arm, with its name; the first is the baseline.
      budget: time for building and compiling.

    Returns:
      The compiled arms, in order.
    """
    ready: list[Arm] = []

    def traced(name: str, make: Callable[[], Arm]) -> tuple[Arm, Any] | None:
        try:
            arm = make()
            return arm, arm.lower()
        except Exception as error:  # of any kind: the other arms must still run
            report.error(name, error)
            return None

    def compiled(arm: Arm, lowered: Any) -> Arm:
        begin = time.perf_counter()
        arm.program = lowered.compile()
        arm.compile_s = time.perf_counter() - begin
        return arm

    threads = max(1, min(6, (os.cpu_count() or 1) // 2))
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    waiting: list[tuple[str, concurrent.futures.Future[Arm]]] = []
    for name, make in makers:
        if waiting and budget.left < 0:
            report.error(name, "there was no time to compile it")
        elif found := traced(name, make):
            waiting.append((name, pool.submit(compiled, *found)))
            if len(waiting) == 1:
                concurrent.futures.wait([waiting[0][1]])
    for name, future in waiting:
        concurrent.futures.wait([future], timeout=max(0.0, budget.left))
        if future.cancel():  # it has not started
            report.error(name, "there was no time to compile it")
            continue
        try:
            ready.append(future.result())
        except Exception as error:
            report.error(name, error)
    pool.shutdown()
    return ready


def steps_at_once(report: Report, arm: Arm, before: Reset = lambda carry: carry) -> int:
    """Return how many steps to take before waiting, so that waiting does not count."""
    if report.options.quick:
        return 1
    run = arm.block(1, before)
    jax.block_until_ready(run())
    begin = time.perf_counter()
    jax.block_until_ready(run())
    taken = time.perf_counter() - begin
    return max(1, min(MOST_STEPS, int(BLOCK_SECONDS / taken)))


def compare(
    report: Report,
    title: str,
    candidates: Sequence[harness.Candidate],
    budget: Budget,
    **key: Any,
) -> dict[str, harness.Timing]:
    """Time candidates in turn, and add the table; the first is the baseline.

    Args:
      report: the report.
      title: title of the table.
      candidates: what to time. Candidates that fail in their first call are reported
        and left out.
      budget: time for all calls.
      **key: key of the table.

    Returns:
      The timings by name.
    """
    working = []
    for candidate in candidates:
        try:
            jax.block_until_ready(candidate.run())
            working.append(candidate)
        except Exception as error:
            report.error(f"{title}: {candidate.name}", error)
    if not working or working[0] is not candidates[0]:
        return {}
    rounds = report.options.rounds_or(ROUNDS)
    timings = harness.measure(working, rounds, seconds=max(LEAST_SECONDS, budget.left))
    report.table(title, timings, candidates[0].name, **key)
    return timings
