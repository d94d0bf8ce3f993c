"""A saved result against budgets: within or beyond, figure by figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.common import REFERENCE
from benchmarks.markdown import markdown_table
from benchmarks.report import STAGES
from metro_edge.errors import UserError

EXIT_BEYOND = 1
HEADER = ("precision", "figure", "measured", "budget", "verdict")


@dataclass(frozen=True)
class Budgets:
    """The most that a precision may cost; None for no limit.

    Attributes:
        mpjpe_loss_mm: mean change of the MPJPE against FP32, paired per sample.
        p95_ms: 95th percentile of the stage.
        ratio: time of the stage against FP32, median over rounds.
        stage: `network` or `end_to_end`, of the two above.
        jitter_gain: share by which the jitter of people who move is above FP32's, 0.05 for 5 %.
        confident: the upper end of the 95 % interval must be within the budget, not only the figure.
    """

    mpjpe_loss_mm: float | None = None
    p95_ms: float | None = None
    ratio: float | None = None
    stage: str = "end_to_end"
    confident: bool = False
    jitter_gain: float | None = None

    def __post_init__(self) -> None:
        given = {
            "--max-mpjpe-loss-mm": self.mpjpe_loss_mm,
            "--max-p95-ms": self.p95_ms,
            "--max-ratio": self.ratio,
            "--max-jitter-gain": self.jitter_gain,
        }
        if all(value is None for value in given.values()):
            raise UserError(f"no budget: give at least one of {', '.join(given)}")
        for name, value in given.items():
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} must be a number of at least 0, got {value:g}")
        if self.stage not in STAGES:
            raise UserError(f"unknown stage {self.stage!r}; known: {', '.join(STAGES)}")


@dataclass(frozen=True)
class Check:
    """One figure of one precision against its budget."""

    precision: str
    figure: str
    measured: float
    budget: float

    @property
    def within(self) -> bool:
        """Whether it is not beyond the budget; equal is within."""
        return self.measured <= self.budget


def gate(report: dict[str, Any], budgets: Budgets, precisions: Sequence[str] = ()) -> list[Check]:
    """Hold a result (benchmarks.report) against budgets.

    FP32 is the reference of losses, ratio and gain, so only its p95 is checked.

    Args:
        report: the result.
        budgets: what may be spent.
        precisions: which to check; empty for all of the result.

    Raises:
        UserError: a precision that was not measured, a figure that the result does not have, or nothing to check.
    """
    measured = report["precisions"]
    for precision in precisions:
        if precision not in measured:
            raise UserError(f"{precision} was not measured; the result has {', '.join(measured)}")
    checks = [
        check for precision in precisions or measured for check in _checks(precision, measured[precision], budgets)
    ]
    if not checks:
        raise UserError("nothing to check: losses and ratios are held against FP32; only --max-p95-ms checks it")
    return checks


def gate_markdown(checks: Sequence[Check]) -> str:
    """Return the table of the checks and one sentence."""
    rows = [
        [c.precision, c.figure, f"{c.measured:.3f}", f"{c.budget:g}", "within" if c.within else "BEYOND"]
        for c in checks
    ]
    beyond = sum(not check.within for check in checks)
    last = f"{beyond} of {len(checks)} beyond budget." if beyond else f"All {len(checks)} within budget."
    return markdown_table(HEADER, rows, ("precision", "figure", "verdict")) + f"\n\n{last}\n"


def _checks(precision: str, entry: dict[str, Any], budgets: Budgets) -> list[Check]:
    found: list[Check] = []

    def check(what: str, value: float | None, around: dict[str, float] | None, budget: float | None) -> None:
        if budget is None:
            return
        if value is None or (budgets.confident and around is None):
            raise UserError(
                f"the result has no {'interval of the ' if value is not None else ''}{what} of {precision}: measure "
                "again, with more samples or calls"
            )
        if budgets.confident and around is not None:
            what, value = f"{what}, upper end", around["high"]
        found.append(Check(precision, what, float(value), budget))

    latency = entry["latency"][budgets.stage]
    name = budgets.stage.replace("_", " ")
    if precision != REFERENCE:
        loss, ratio = entry["accuracy"]["against_fp32"] or {}, latency["ratio_to_fp32"] or {}
        change = "mpjpe_change_mm"
        check("MPJPE loss mm", loss.get(change), loss.get("intervals", {}).get(change), budgets.mpjpe_loss_mm)
        motion = entry.get("motion") or {}
        check("jitter gain", motion.get("jitter_gain"), motion.get("jitter_gain_interval"), budgets.jitter_gain)
        check(f"{name} x FP32", ratio.get("median"), ratio.get("interval"), budgets.ratio)
    check(f"{name} p95 ms", latency["p95_ms"], latency.get("intervals", {}).get("p95_ms"), budgets.p95_ms)
    return found
