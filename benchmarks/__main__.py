"""`python -m benchmarks COMMAND`: latency and accuracy of a bundle, and the tables of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.cli_against import add_parsers as add_against_parsers
from benchmarks.cli_html import add_parsers as add_html_parsers
from benchmarks.cli_stages import add_parsers as add_stages_parsers
from metro_edge.cli import quiet_opencv, run_command
from metro_edge.errors import UserError

LIVE_PARTS = ("speed", "people", "memory", "drawing", "identities", "smoothing")
# Heavy imports sit inside the commands, so that --help answers at once.


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, see `metro_edge.cli.run_command`."""
    quiet_opencv()
    return run_command(_parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser(
        "run",
        help="measure a bundle on this machine",
        description="Measure latency and accuracy of every precision of a bundle, print one table and save it as JSON "
        "and Markdown. The first run renders its samples (minutes); later ones read them from runs/people.",
    )
    command.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    command.add_argument("--samples", metavar="N", type=int, default=2000, help="for the accuracy (default: 2000)")
    command.add_argument(
        "--precision",
        metavar="P",
        nargs="+",
        default=[],
        help="fp32, fp16, int8 (default: all of the bundle); fp32 is measured along as the reference",
    )
    command.add_argument("--backend", metavar="B", default="onnxruntime", help="engine (default: onnxruntime)")
    command.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the engine's choice)")
    command.add_argument("--runs", metavar="N", type=int, default=100, help="calls timed of each (default: 100)")
    command.add_argument(
        "--data",
        metavar="FOLDER",
        default="generated",
        help="folder of shards that training wrote, or the word generated, for people rendered now (default); with "
        "--protocol a data set's files",
    )
    command.add_argument("--protocol", metavar="NAME", default="", help="compare by it: docs/evaluation.md has them")
    command.add_argument("--smpl", metavar="DIR", default="", help="SMPL files, for data labelled in pose and shape")
    command.add_argument("--no-motion", action="store_true", help="leave out the people who move")
    command.add_argument("--no-crops", action="store_true", help="leave out other crops of the first samples")
    command.add_argument(
        "--seed", metavar="N", type=int, help="of generated people (default: 3; training uses 1 and 2)"
    )
    command.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("benchmarks") / "results",
        help="folder of the results (default: benchmarks/results)",
    )
    command.set_defaults(run=_run)

    command = commands.add_parser(
        "kernels",
        help="time the CUDA kernels on this GPU",
        description="Time each CUDA kernel on this GPU beside its NumPy and OpenCV twin, print one table and save it.",
    )
    command.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="folder or .zip (default: shipped)")
    command.add_argument("--people", metavar="N", type=int, nargs="+", default=[1, 4, 16], help="default: 1 4 16")
    command.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("benchmarks") / "results")
    command.set_defaults(run=_kernels)

    command = commands.add_parser(
        "live",
        help="speed, memory, identities and jitter of the live pipeline",
        description="Measure the live pipeline on generated clips with the shipped bundle and print tables. Identities "
        "and smoothing render their scenes first (minutes, once).",
    )
    command.add_argument("parts", metavar="PART", nargs="*", help=f"{', '.join(LIVE_PARTS)} (default: all)")
    command.add_argument("--frames", metavar="N", type=int, default=3000, help="of the memory's run (default: 3000)")
    command.set_defaults(run=_live)

    command = commands.add_parser(
        "roofline",
        help="predict the least time on known devices",
        description="Count multiply-adds and bytes of every layer of a bundle's FP32 graph and predict, from published "
        "peaks, the least time on each device at each precision and what bounds it. The network is not timed; of the "
        "device this-cpu, the peaks are measured (a quarter of a minute).",
    )
    command.add_argument("bundle", metavar="BUNDLE", type=Path, help="folder or .zip")
    command.add_argument("--precision", metavar="P", nargs="+", default=[], help="default: fp32 fp16 int8; also fp8")
    command.add_argument(
        "--device", metavar="NAME", nargs="+", default=[], help="of the table, or this-cpu (default: all of the table)"
    )
    command.add_argument("--batch", metavar="N", type=int, default=1, help="images of a call (default: 1)")
    command.add_argument("-o", "--output", metavar="DIR", type=Path, default=Path("benchmarks") / "results")
    command.set_defaults(run=_roofline)

    _add_judging(commands)
    add_stages_parsers(commands)
    add_against_parsers(commands)
    add_html_parsers(commands)

    command = commands.add_parser("table", help="print the Markdown of a saved result again")
    command.add_argument("result", metavar="RESULT.json", type=Path)
    command.add_argument(
        "--readme",
        metavar="README.md",
        type=Path,
        help="replace the text between <!-- table:begin --> and <!-- table:end --> of this file by it",
    )
    command.set_defaults(run=_table)
    return parser


def _add_judging(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser(
        "compare",
        help="what changed between two saved results beyond noise",
        description="Print what changed from A to B beyond noise: errors of the same samples paired, all else by "
        "intervals that do not overlap. Results of different data, samples, seeds, protocols or machines are refused.",
    )
    command.add_argument("a", metavar="A.json", type=Path)
    command.add_argument("b", metavar="B.json", type=Path)
    command.add_argument(
        "--allow",
        metavar="KIND",
        action="append",
        default=[],
        help="compare although they differ in this: data, samples, seed, protocol or machine; may be repeated",
    )
    command.set_defaults(run=_compare)

    command = commands.add_parser(
        "gate",
        help="exit with 1 when a saved result is beyond budgets",
        description="Check a saved result against budgets. Exit code: 0 within, 1 beyond, 2 for a mistake.",
    )
    command.add_argument("result", metavar="RESULT.json", type=Path)
    command.add_argument("--max-mpjpe-loss-mm", metavar="X", type=float, help="mean change of the MPJPE against FP32")
    command.add_argument("--max-p95-ms", metavar="Y", type=float, help="95th percentile of the stage")
    command.add_argument("--max-ratio", metavar="Z", type=float, help="time of the stage against FP32, 1 is as fast")
    command.add_argument("--max-jitter-gain", metavar="G", type=float, help="jitter above FP32's, 0.05 is 5 %% more")
    command.add_argument("--precision", metavar="P", nargs="+", default=[], help="default: all of the result")
    command.add_argument("--stage", metavar="S", default="end_to_end", help="network or end_to_end (default)")
    command.add_argument(
        "--confident", action="store_true", help="the upper end of the 95%% interval must be within, too"
    )
    command.set_defaults(run=_gate)


def _compare(args: argparse.Namespace) -> int:
    from benchmarks.compare import compare, compare_markdown
    from benchmarks.report import read_report

    a, b = read_report(args.a), read_report(args.b)
    print(compare_markdown(a, b, compare(a, b, args.allow), args.allow), end="")
    return 0


def _gate(args: argparse.Namespace) -> int:
    from benchmarks.gate import EXIT_BEYOND, Budgets, gate, gate_markdown
    from benchmarks.report import read_report

    budgets = Budgets(
        args.max_mpjpe_loss_mm, args.max_p95_ms, args.max_ratio, args.stage, args.confident, args.max_jitter_gain
    )
    checks = gate(read_report(args.result), budgets, args.precision)
    print(gate_markdown(checks), end="")
    return 0 if all(check.within for check in checks) else EXIT_BEYOND


def _run(args: argparse.Namespace) -> int:
    from benchmarks.people import TEST_SEED
    from benchmarks.run import Settings, run

    settings = Settings(
        bundle=args.bundle,
        samples=args.samples,
        precisions=tuple(dict.fromkeys(args.precision)),
        backend=args.backend,
        threads=args.threads,
        runs=args.runs,
        data=args.data,
        seed=TEST_SEED if args.seed is None else args.seed,
        output=args.output,
        rules=args.protocol,
        smpl=args.smpl,
        motion=not args.no_motion,
        crops=not args.no_crops,
    )
    _, markdown, paths = run(settings)
    print(markdown)
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    return 0


def _live(args: argparse.Namespace) -> int:
    from benchmarks.live import run_parts

    if unknown := set(args.parts) - set(LIVE_PARTS):
        raise UserError(f"unknown part {', '.join(sorted(unknown))}; known: {', '.join(LIVE_PARTS)}")
    if args.frames < 200:
        raise UserError(f"--frames must be at least 200, got {args.frames}")
    run_parts(args.parts or list(LIVE_PARTS), args.frames)
    return 0


def _kernels(args: argparse.Namespace) -> int:
    from benchmarks.kernels import run

    words = ["python -m benchmarks kernels", *([str(args.bundle)] if args.bundle else [])]
    command = " ".join([*words, "--people", *map(str, args.people)])
    markdown, paths = run(args.bundle, args.people, args.output, command)
    print(markdown)
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    return 0


def _roofline(args: argparse.Namespace) -> int:
    from benchmarks.roofline import run

    markdown, paths = run(args.bundle, args.precision, args.device, args.batch, args.output)
    print(markdown)
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    return 0


def _table(args: argparse.Namespace) -> int:
    from benchmarks.kinds import saved_markdown
    from benchmarks.tables import insert_into_readme

    markdown = saved_markdown(args.result)
    if args.readme is not None:
        insert_into_readme(args.readme, saved_markdown(args.result, details=False))
    print(markdown, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
