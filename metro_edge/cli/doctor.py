"""`metro-edge doctor`: what works on this machine, and the line that installs what does not."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from metro_edge.cli import printable


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor",
        help="what works on this machine, and the line that installs what does not",
        description="Print driver, CUDA, TensorRT, PyCUDA, ONNX Runtime, OpenVINO, device, power mode and clocks, what "
        "is missing, and the line that installs it. Exit code 0 when the CPU path and all that --need names work, "
        "else 1.",
    )
    parser.add_argument(
        "--need",
        metavar="N",
        action="append",
        default=[],
        help="fail unless this works too: cpu, openvino, tensorrt or rtx; may be given several times",
    )
    parser.add_argument("--json", action="store_true", help="print the report in JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Examine and print; returns the exit code."""
    from metro_edge.doctor import NEEDS, examine, text_of
    from metro_edge.errors import UserError

    if unknown := [need for need in args.need if need not in NEEDS]:
        raise UserError(f"unknown need {unknown[0]!r}; known: {', '.join(NEEDS)}")
    report = examine()
    failed = [need for need in dict.fromkeys(["cpu", *args.need]) if report.missing(need)]
    if args.json:
        print(json.dumps({**report.to_dict(), "failed": failed}, indent=2))
    else:
        print("\n".join(printable(line) for line in text_of(report).splitlines()))
        for need in failed:
            print(f"{need} was asked for and does not work" if need in args.need else "the CPU path does not work",
                  file=sys.stderr)  # fmt: skip
    return 1 if failed else 0
