"""The commands `stages` and `load` of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands; loads nothing heavy."""
    _add_stages(commands)
    _add_load(commands)


def _add_common(command: argparse.ArgumentParser) -> None:
    command.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    command.add_argument("--backend", metavar="B", default="onnxruntime", help="engine (default: onnxruntime)")
    command.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the engine's choice)")
    command.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("benchmarks") / "results",
        help="folder of the results (default: benchmarks/results)",
    )


def _add_stages(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "stages",
        help="latency of each stage from capture to mesh, throughput and cold start",
        description="Measure each stage from the decoder to the mesh and its overlay until it has settled, frames that "
        "miss the period of a rate, throughput and cold starts; print tables and save them as JSON, Markdown and PNG.",
    )
    _add_common(command)
    command.add_argument("--precision", metavar="P", nargs="+", default=[], help="default: all of the bundle")
    command.add_argument("--source", metavar="VIDEO", type=Path, help="default: the shipped clip at 1280 x 720")
    command.add_argument(
        "--box",
        metavar="N",
        type=float,
        nargs=4,
        help="x, y, width, height of the person in VIDEO (default: all of it)",
    )
    command.add_argument("--rate", metavar="HZ", type=float, default=30.0, help="its period is the deadline (30)")
    group = command.add_argument_group("when it has settled")
    group.add_argument("--window", metavar="N", type=int, default=50, help="frames of a window (50)")
    group.add_argument("--windows", metavar="N", type=int, default=3, help="windows in a row that must agree (3)")
    group.add_argument("--within", metavar="X", type=float, default=0.05, help="share that they may differ by (0.05)")
    group.add_argument("--min-frames", metavar="N", type=int, default=200, help="of each precision, at least (200)")
    group.add_argument("--max-frames", metavar="N", type=int, default=1000, help="of each precision, at most (1000)")
    group = command.add_argument_group("throughput and cold start")
    group.add_argument("--runs", metavar="N", type=int, default=20, help="calls of each batch and crowd (20)")
    group.add_argument("--batch", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    group.add_argument("--people", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="1 2 4 8 16")
    group.add_argument("--streams", metavar="N", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    group.add_argument("--stream-seconds", metavar="S", type=float, default=3.0, help="of each number of streams (3)")
    group.add_argument("--repeats", metavar="N", type=int, default=3, help="cold starts of each precision (3)")
    group.add_argument("--plan-for", metavar="GPU", help="time building a plan ahead of time, such as for sm86")
    command.set_defaults(run=_stages)


def _add_load(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "load",
        help="latency of several cameras before one engine",
        description="Let several cameras send frames to one engine, each waiting for its answer (closed loop) or at a "
        "fixed rate (open loop), and search the rate at which deadlines break; print tables and save them as JSON, "
        "Markdown and PNG.",
    )
    _add_common(command)
    command.add_argument("--precision", metavar="P", default="fp32", help="default: fp32")
    command.add_argument("--cameras", metavar="N", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    command.add_argument(
        "--rate", metavar="HZ", type=float, nargs="+", default=[5.0, 10.0, 30.0], help="of each camera (5 10 30)"
    )
    command.add_argument("--loop", metavar="L", nargs="+", default=["closed", "open"], help="closed, open (both)")
    command.add_argument("--arrivals", metavar="A", default="periodic", help="periodic (default) or poisson")
    command.add_argument("--seconds", metavar="S", type=float, default=4.0, help="of each cell (4)")
    command.add_argument("--deadline-ms", metavar="D", type=float, default=100.0, help="from due to mesh (100)")
    command.add_argument("--queue", metavar="N", type=int, default=1, help="frames of a camera that may wait (1)")
    command.add_argument("--allowed", metavar="X", type=float, default=0.01, help="share that may miss (0.01)")
    command.add_argument(
        "--tolerance", metavar="X", type=float, default=0.05, help="of the search for the largest rate (0.05); 0: none"
    )
    command.add_argument("--seed", metavar="N", type=int, default=0, help="of the arrivals (0)")
    command.set_defaults(run=_load)


def _load(args: argparse.Namespace) -> int:
    from benchmarks.load import Settings, run

    settings = Settings(
        bundle=args.bundle,
        precision=args.precision,
        backend=args.backend,
        threads=args.threads,
        cameras=tuple(dict.fromkeys(args.cameras)),
        rates_hz=tuple(dict.fromkeys(args.rate)),
        loops=tuple(dict.fromkeys(args.loop)),
        arrivals=args.arrivals,
        seconds=args.seconds,
        deadline_ms=args.deadline_ms,
        queue=args.queue,
        allowed=args.allowed,
        tolerance=args.tolerance or None,
        seed=args.seed,
        output=args.output,
    )
    return _said(*run(settings))


def _stages(args: argparse.Namespace) -> int:
    from benchmarks.stability import Stability
    from benchmarks.stages import Settings, run

    settings = Settings(
        bundle=args.bundle,
        precisions=tuple(dict.fromkeys(args.precision)),
        source=args.source,
        box=None if args.box is None else tuple(args.box),
        backend=args.backend,
        threads=args.threads,
        rate_hz=args.rate,
        stability=Stability(args.window, args.windows, args.within, args.min_frames, args.max_frames),
        runs=args.runs,
        batches=tuple(args.batch),
        people=tuple(args.people),
        streams=tuple(args.streams),
        stream_s=args.stream_seconds,
        repeats=args.repeats,
        plan_for=args.plan_for,
        output=args.output,
    )
    return _said(*run(settings))


def _said(markdown: str, paths: list[Path]) -> int:
    print(markdown)
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    return 0
