"""Reports on figures of the SparseOpt paper: its claims, and a verdict on them.

The paper is Adnan et al., 2026 (arXiv 2605.27541). A claim that it makes is told apart
from one of ours, and the verdict goes by the paper's alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from reporting import harness


class Report(harness.Report):
    """A report on one figure, or on several that belong together."""

    def published(self, what: str, measured: float, **limit: Any) -> None:
        """Adds a claim that the paper makes, with a limit that was set beforehand."""
        self.claim(what, measured, **limit)
        self.record["claims"][-1]["published"] = True

    def store(self) -> None:
        """Writes the record with its verdict."""
        self.record["verdict"] = verdict(self.record["claims"])
        print(f"\nVerdict on what the paper claims: {self.record['verdict']}.")
        super().store()


def verdict(claims: Iterable[Mapping[str, Any]]) -> str:
    """What has become of the claims that the paper makes.

    >>> verdict([{"published": True, "met": True}, {"met": False}])
    'reproduced'
    """
    met = [claim["met"] for claim in claims if claim.get("published")]
    if not met:
        raise ValueError("no claim of the paper was looked at")
    if all(met):
        return "reproduced"
    return "partly reproduced" if any(met) else "not reproduced"
