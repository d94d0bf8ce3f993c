"""`metro-edge build`: a TensorRT plan from a bundle, on the device that will run it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from metro_edge.spec import PRECISIONS


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "build",
        help="build a TensorRT plan from a bundle",
        description="Build a plan with TensorRT or TensorRT-RTX, whichever is installed. A plan of TensorRT "
        "runs on the GPU that it was built on, one of TensorRT-RTX on every GPU from compute capability 8.0 "
        "on. Beside the plan, PLAN.json says what it was built from, with and for.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder of the bundle")
    parser.add_argument(
        "--precision",
        metavar="P",
        required=True,
        help=f"which of the bundle's ONNX graphs: {', '.join(PRECISIONS)}",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="PLAN",
        type=Path,
        help="plan to write (default: BUNDLE.PRECISION.plan, here)",
    )
    parser.add_argument("--max-batch", metavar="N", type=int, default=8, help="largest batch (default: 8)")
    parser.add_argument(
        "--optimal-batch", metavar="N", type=int, default=1, help="batch to choose kernels for (default: 1)"
    )
    parser.add_argument("--workspace-mb", metavar="MB", type=int, help="limit of scratch memory while building")
    parser.add_argument(
        "--compute-capability",
        metavar="X.Y",
        nargs="+",
        default=[],
        help="GPUs to build for, such as 7.5 8.6 (TensorRT-RTX only; default: every one from 8.0 on)",
    )
    parser.add_argument(
        "--library",
        metavar="L",
        default="auto",
        help="tensorrt or tensorrt_rtx (default: the first of the two that is installed)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Build the plan and say what was written; returns the exit code."""
    from metro_edge.backends.tensorrt import PlanInfo, build_plan
    from metro_edge.bundle import Bundle

    onnx_path = Bundle.load(args.bundle).onnx_path(args.precision)
    name = args.bundle.resolve().name
    plan_path: Path = args.output or Path(f"{name}.{args.precision}.plan")
    start_s = time.perf_counter()
    info = build_plan(
        onnx_path,
        plan_path,
        precision=args.precision,
        max_batch=args.max_batch,
        optimal_batch=args.optimal_batch,
        workspace_mb=args.workspace_mb,
        compute_capabilities=args.compute_capability,
        library=args.library,
    )
    print(
        f"{plan_path}: {info.precision}, batch 1 to {info.max_batch}, {info.plan_bytes / 1e6:.1f} MB, "
        f"{info.library} {info.library_version}, {time.perf_counter() - start_s:.0f} s"
    )
    runs_on = ", ".join(info.compute_capabilities) or "unknown"
    gpu = f" ({info.gpu})" if info.gpu else ""
    print(f"runs on compute capability {runs_on}{gpu}; described in {PlanInfo.path_of(plan_path)}")
    return 0
