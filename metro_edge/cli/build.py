"""`metro-edge build`: a TensorRT plan from a bundle, on the device that will run it, or ahead of time."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metro_edge.cli import printable
from metro_edge.spec import GRAPHS

if TYPE_CHECKING:
    from metro_edge.bundle import Bundle
    from metro_edge.plans import BuildOptions, PlanInfo


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "build",
        help="build a TensorRT plan from a bundle",
        description="Build a plan with TensorRT or TensorRT-RTX, whichever is installed. A plan of TensorRT "
        "runs on the GPU that it was built on, one of TensorRT-RTX on those of compute capability 8.0, 8.6, 8.9, "
        "and from 12.0 on. Without -o it goes into the cache and is built once (`metro-edge plans` lists them). Beside "
        "the plan, PLAN.json says what it was built from, with and for, PLAN.layers.json what it is made of.",
    )
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, nargs="?", help="folder or .zip (default: the shipped bundle)"
    )
    parser.add_argument("--precision", metavar="P", help=f"which of the bundle's graphs: {', '.join(GRAPHS)}")
    parser.add_argument("-o", "--output", metavar="PLAN", type=Path, help="plan to write (default: the cache)")
    parser.add_argument(
        "--batch",
        metavar="N or MIN,BEST,MAX",
        action="append",
        help="batches that the plan takes; may be given several times, for several profiles (default: 1,1,8)",
    )
    parser.add_argument("--workspace-mb", metavar="MB", type=int, help="most scratch memory that a layer may use")
    parser.add_argument("--level", metavar="0-5", type=int, help="0 builds quickest, 5 runs fastest")
    parser.add_argument(
        "--timing-cache", metavar="FILE", type=Path, help="keep measured kernel times here (TensorRT only)"
    )
    parser.add_argument("--refit", action="store_true", help="weights can be replaced in the plan")
    parser.add_argument("--strip-weights", action="store_true", help="leave the weights out of the plan")
    parser.add_argument(
        "--compatibility",
        metavar="C",
        default="none",
        help="other GPUs that it must run on: none, same-capability or ampere+ (TensorRT only)",
    )
    parser.add_argument("--version-compatible", action="store_true", help="run with newer versions too (TensorRT only)")
    _add_target_options(parser)
    parser.set_defaults(run=run)


def _add_target_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--for",
        dest="targets",
        metavar="GPU,...",
        action="append",
        help="GPUs to build for, without one, such as sm86,sm89 or rtx-3060,rtx-4090 (TensorRT-RTX only)",
    )
    parser.add_argument("--device", metavar="D", help="the device that the plan is for, such as orin-nano")
    parser.add_argument("--dla", metavar="N", type=int, help="use DLA core N, and the GPU for what it cannot do")
    parser.add_argument(
        "--library",
        metavar="L",
        default="auto",
        help="tensorrt or tensorrt_rtx (default: the first of the two that is installed)",
    )
    parser.add_argument("--explain", action="store_true", help="build nothing; say what would be done for --device")
    parser.add_argument("--json", action="store_true", help="print the answer of --explain as JSON")


def run(args: argparse.Namespace) -> int:
    """Build the plan, or explain it, and say what was written; returns the exit code."""
    from metro_edge.bundle import Bundle
    from metro_edge.devices import device
    from metro_edge.errors import UserError
    from metro_edge.plans import build_plan_of, plan_for
    from metro_edge.plans.targets import for_device

    options = _options(args)
    bundle = Bundle.load(args.bundle)
    if args.explain:
        return _explain(args, options, bundle)
    if args.json:
        raise UserError("--json belongs to --explain")
    if args.precision is None:
        raise UserError(f"--precision is missing: one of {', '.join(bundle.precisions)}")
    if args.device is not None:
        options = for_device(options, device(args.device), args.library)
    start_s = time.perf_counter()
    if args.output is None:
        plan = plan_for(bundle, args.precision, options, library=args.library)
        _say(plan.path, plan.info, time.perf_counter() - start_s if plan.built else None)
        return 0
    info = build_plan_of(bundle, args.precision, args.output, options=options, library=args.library)
    _say(args.output, info, time.perf_counter() - start_s)
    return 0


def _options(args: argparse.Namespace) -> BuildOptions:
    from metro_edge.plans.options import DEFAULT_PROFILES, BuildOptions, parse_profile
    from metro_edge.plans.targets import capabilities_of

    return BuildOptions(
        profiles=tuple(map(parse_profile, args.batch)) if args.batch else DEFAULT_PROFILES,
        workspace_mb=args.workspace_mb,
        level=args.level,
        timing_cache=args.timing_cache,
        refit=args.refit,
        strip_weights=args.strip_weights,
        compatibility=args.compatibility,
        version_compatible=args.version_compatible,
        capabilities=capabilities_of(args.targets) if args.targets else (),
        dla=args.dla,
    )


def _say(path: Path, info: PlanInfo, seconds: float | None) -> None:
    from metro_edge.machine import peak_memory_mb
    from metro_edge.plans import PlanInfo

    batches = " and ".join(
        f"batch {p.largest}" if p.smallest == p.largest else f"batch {p.smallest} to {p.largest}" for p in info.profiles
    )
    took = "from the cache" if seconds is None else f"{seconds:.0f} s"
    if seconds is not None and (peak := peak_memory_mb()) is not None:
        took += f", peak memory {peak / 1000:.1f} GB"
    print(
        f"{path}: {info.precision}, {batches}, {info.plan_bytes / 1e6:.1f} MB, "
        f"{info.library} {info.library_version}, {took}"
    )
    runs_on = ", ".join(info.compute_capabilities) or "unknown"
    gpu = f" ({info.gpu})" if info.gpu else ""
    print(f"runs on compute capability {runs_on}{gpu}; described in {PlanInfo.path_of(path)}")
    if loss := _loss(info.origin.get("measured")):
        print(loss)


def _loss(measured: Any) -> str | None:
    """Return in words what a precision loses, and on what; None where the passport does not say."""
    if not isinstance(measured, dict):
        return None
    names = {"mpjpe_lost_mm": "MPJPE", "mpvpe_lost_mm": "MPVPE", "moved_mm": "vertices moved"}
    values = {word: measured.get(name) for name, word in names.items()}
    parts = [f"{word} {value:.3f} mm" for word, value in values.items() if isinstance(value, (int, float))]
    if not parts:
        return None
    where = f"{measured.get('samples', '?')} samples, {measured.get('data', 'not stated')}"
    return printable(f"loses, says the bundle: {', '.join(parts)} ({where})")


def _explain(args: argparse.Namespace, options: BuildOptions, bundle: Bundle) -> int:
    from dataclasses import asdict

    from metro_edge.devices import DEVICES, device
    from metro_edge.errors import UserError
    from metro_edge.plans.explain import explain, text_of
    from metro_edge.spec import check_precision

    if args.device is None:
        raise UserError(f"--explain needs --device, one of {', '.join(DEVICES)}")
    if options.capabilities:
        raise UserError("name the GPU by --device or by --for, not both")
    if args.output is not None:
        raise UserError("--explain builds nothing: leave --output out")
    precisions = bundle.precisions if args.precision is None else (check_precision(args.precision, GRAPHS),)
    target = device(args.device)
    builds = explain(target, bundle, precisions, options, args.library)
    if args.json:
        described = {**vars(target), "peaks": dict(target.peaks), "tensorrt": dict(target.tensorrt)}
        print(json.dumps({"device": described, "builds": [asdict(build) for build in builds]}, indent=2))
    else:
        print(text_of(target, bundle, builds))
    return 0
