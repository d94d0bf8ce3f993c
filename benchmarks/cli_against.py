"""The commands `against` and `energy` of `python -m benchmarks`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from metro_edge.errors import MissingExtraError

RESULTS = Path("benchmarks") / "results"
# Heavy imports sit inside the commands, so that --help answers at once.


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add both commands."""
    command = commands.add_parser(
        "against",
        help="the same network in PyTorch, torch.compile, plain exports and ours",
        description="Time one network on every engine that is here, interleaved: PyTorch, torch.compile, its plain "
        "ONNX export on ONNX Runtime, OpenVINO and TensorRT, and metro-edge's own graphs; as ratios to PyTorch, each "
        "with its largest change of the outputs.",
    )
    command.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="folder or .zip (default: shipped)")
    command.add_argument("--checkpoint", metavar="CKPT", type=Path, help="the bundle's own (default: the shipped one)")
    command.add_argument("--body", metavar="NAME=PATH", help="of a released checkpoint, such as smpl=FOLDER")
    command.add_argument(
        "--network",
        metavar="NAME",
        help="instead of a bundle: a released architecture with seeded weights, not trained, such as "
        "metro-body-hrnet-w64; converted first (minutes, once)",
    )
    command.add_argument("--processor", metavar="P", default="cpu", help="cpu (default) or gpu")
    command.add_argument("--threads", metavar="N", type=int, help="of every engine on the CPU (default: all cores)")
    command.add_argument("--rounds", metavar="N", type=int, default=12, help="turns of all engines (default: 12)")
    command.add_argument("-o", "--output", metavar="DIR", type=Path, default=RESULTS)
    command.set_defaults(run=_against)
    _add_energy(commands)


def _add_energy(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "energy",
        help="joules a frame, heat, clocks and throttling",
        description="Run the estimator steadily and read power, temperature and clocks from the device itself: a "
        "Jetson's rails, an NVIDIA GPU's counter, or the counters of an x86 processor.",
    )
    command.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    command.add_argument("--seconds", metavar="S", type=float, default=60.0, help="of each precision (default: 60)")
    command.add_argument("--idle-seconds", metavar="S", type=float, default=10.0, help="before each (default: 10)")
    command.add_argument("--precision", metavar="P", nargs="+", default=[], help="default: all of the bundle")
    command.add_argument("--backend", metavar="B", default="onnxruntime", help="engine (default: onnxruntime)")
    command.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the engine's choice)")
    command.add_argument("--fps", metavar="F", type=float, help="frames a second (default: as fast as it goes)")
    command.add_argument(
        "--reader", metavar="R", action="append", default=[],
        help="ina3221, tegrastats, nvml or rapl, may be repeated (default: what this machine has)",
    )  # fmt: skip
    command.add_argument("--interval-ms", metavar="MS", type=int, default=100, help="between readings (default: 100)")
    command.add_argument("-o", "--output", metavar="DIR", type=Path, default=RESULTS)
    command.set_defaults(run=_energy)


def _against(args: argparse.Namespace) -> int:
    try:
        from benchmarks.against import Settings, run
        from training.bodies import parse_body
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "export,train", "compare engines") from None
    settings = Settings(
        bundle=args.bundle,
        checkpoint=args.checkpoint,
        body=None if args.body is None else parse_body(args.body),
        network=args.network,
        processor=args.processor,
        threads=args.threads,
        rounds=args.rounds,
        output=args.output,
    )
    _, markdown, paths = run(settings)
    print(markdown, end="")
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    return 0


def _energy(args: argparse.Namespace) -> int:
    from benchmarks.energy import Settings, run

    settings = Settings(
        bundle=args.bundle,
        seconds=args.seconds,
        idle_seconds=args.idle_seconds,
        precisions=tuple(dict.fromkeys(args.precision)),
        backend=args.backend,
        threads=args.threads,
        fps=args.fps,
        readers=tuple(args.reader),
        interval_ms=args.interval_ms,
        output=args.output,
    )
    _, markdown, paths = run(settings)
    print(markdown, end="")
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    return 0
