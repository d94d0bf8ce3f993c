"""`python -m benchmarks gate`: exit with 1 when a saved result is beyond budgets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "gate",
        help="exit with 1 when a saved result is beyond budgets",
        description="Check a saved result against budgets. Exit code: 0 within, 1 beyond, 2 for a mistake.",
    )
    parser.add_argument("result", metavar="RESULT.json", type=Path)
    parser.add_argument("--max-mpjpe-loss-mm", metavar="X", type=float, help="mean change of the MPJPE against FP32")
    parser.add_argument("--max-p95-ms", metavar="Y", type=float, help="95th percentile of the stage")
    parser.add_argument("--max-ratio", metavar="Z", type=float, help="time of the stage against FP32, 1 is as fast")
    parser.add_argument("--max-jitter-gain", metavar="G", type=float, help="jitter above FP32's, 0.05 is 5 %% more")
    parser.add_argument("--precision", metavar="P", nargs="+", default=[], help="default: all of the result")
    parser.add_argument("--stage", metavar="S", default="end_to_end", help="network or end_to_end (default)")
    parser.add_argument(
        "--confident", action="store_true", help="the upper end of the 95%% interval must be within, too"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from benchmarks.gate import EXIT_BEYOND, Budgets, gate, gate_markdown
    from benchmarks.html.kinds import guarded, read_run

    budgets = Budgets(
        args.max_mpjpe_loss_mm, args.max_p95_ms, args.max_ratio, args.stage, args.confident, args.max_jitter_gain
    )
    result = read_run(args.result)
    checks = guarded(result, lambda: gate(result.data, budgets, args.precision))
    print(gate_markdown(checks), end="")
    return 0 if all(check.within for check in checks) else EXIT_BEYOND
