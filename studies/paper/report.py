"""Reports on figures of the SparseOpt paper: its claims, and a verdict on them.

The paper is Adnan et al., 2026 (arXiv 2605.27541). Its claims are kept separate from
ours, and the verdict depends on the paper's alone.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from reporting import harness


class Report(harness.Report):
    """A report on one figure, or on several that belong together."""

    def published(self, what: str, measured: float, **limit: Any) -> None:
        """Add a claim of the paper, with a limit that was set beforehand."""
        self.claim(what, measured, **limit)
        self.record["claims"][-1]["published"] = True

    def store(self) -> None:
        """Write the record with its verdict."""
        self.record["verdict"] = verdict(self.record["claims"])
        print(f"\nVerdict on what the paper claims: {self.record['verdict']}.")
        super().store()


def verdict(claims: Iterable[Mapping[str, Any]]) -> str:
    """Return the verdict on the paper's claims.

    >>> verdict([{"published": True, "met": True}, {"met": False}])
    'reproduced'
    """
    met = [claim["met"] for claim in claims if claim.get("published")]
    if not met:
        raise ValueError("no claim of the paper was looked at")
    if all(met):
        return "reproduced"
    return "partly reproduced" if any(met) else "not reproduced"
