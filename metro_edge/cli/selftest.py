"""`metro-edge selftest`: every engine and precision against FP32 on ONNX Runtime, in millimetres."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from metro_edge.cli import printable

NOTES = """\
{images} images: the shipped picture and frames of the shipped clip, each alone and all together.
moved: mean distance of the points from those of FP32 on ONNX Runtime; limit: twice what the bundle's passport states.
{machine}"""


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "selftest",
        help="each engine and precision against FP32 in millimetres, and the GPU kernels against their references",
        description="Run the shipped picture and frames of the shipped clip through every engine that is installed and "
        "every precision of the bundle, and compare with FP32 on ONNX Runtime. Where an NVIDIA GPU is, the kernels are "
        "compared with their references too. Exit code 1 when anything differs by more than its limit or fails.",
    )
    parser.add_argument("--bundle", metavar="B", type=Path, help="folder or .zip (default: the shipped bundle)")
    parser.add_argument("--backend", metavar="E", action="append", default=[], help="test this engine; may be repeated")
    parser.add_argument(
        "--precision", metavar="P", action="append", default=[], help="test this precision; may be repeated"
    )
    parser.add_argument("--frames", metavar="N", type=int, default=12, help="how many images (default: 12)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the engine's choice)")
    parser.add_argument("--json", action="store_true", help="print the results in JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Test and print; returns the exit code."""
    from dataclasses import asdict

    from tqdm import tqdm

    from metro_edge.backends.cores import check_cores
    from metro_edge.bundle import Bundle
    from metro_edge.machine import describe_machine, machine_line
    from metro_edge.selftest import (
        FAILED,
        PASSED,
        SKIPPED,
        check_kernels,
        compare_engines,
        names_of,
        results_table,
        shipped_images,
    )

    check_cores(args.threads, None)
    bundle = Bundle.load(args.bundle)
    pairs = names_of(bundle, args.backend, args.precision)
    images = shipped_images(bundle, args.frames)
    results = []
    for result in tqdm(compare_engines(bundle, pairs, images, args.threads), total=len(pairs), desc="engines",
                       leave=False):  # fmt: skip
        results.append(result)
    results += check_kernels()
    # An engine that was asked for by name must be there.
    asked = [r for r in results if r.state == SKIPPED and r.name.split()[0] in args.backend]
    failed = [r for r in results if r.state == FAILED] + asked
    machine = machine_line(describe_machine())
    if args.json:
        print(
            json.dumps({"machine": machine, "results": [asdict(r) for r in results], "failed": len(failed)}, indent=2)
        )
    else:
        print("\n".join(printable(line) for line in results_table(results).splitlines()))
        print(NOTES.format(images=len(images), machine=machine))
        passed = sum(r.state == PASSED for r in results)
        skipped = sum(r.state == SKIPPED for r in results) - len(asked)
        print(f"{passed} passed, {len(failed)} failed, {skipped} skipped")
    return 1 if failed else 0
