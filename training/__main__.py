"""`python -m training COMMAND`: make the body, the data and the pictures of it; train and evaluate."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from metro_edge.errors import UserError
from metro_edge.files import write_json

# Heavy imports sit inside the commands, so that --help answers at once.


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns 0, or 2 after printing a user's mistake in one line."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    command = commands.add_parser("fit", help="train a network from a configuration")
    command.add_argument("config", type=Path, help="YAML file, such as training/configs/metro_edge.yaml")
    command.add_argument("-o", "--output", type=Path, help="folder of the run (default: runs/NAME)")
    command.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the run")
    command.add_argument("--max-steps", type=int, default=-1, help="stop after so many steps")
    command.set_defaults(run=_fit)

    command = commands.add_parser("evaluate", help="accuracy of a checkpoint on held-out samples, beside baselines")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--count", type=int, help="samples (default: all of the run's validation samples)")
    command.add_argument("-o", "--output", type=Path, help="write the figures to this JSON file as well")
    command.set_defaults(run=_evaluate)

    command = commands.add_parser("publish", help="write a run's checkpoint as a small file with its accuracy inside")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("-o", "--output", type=Path, required=True)
    command.set_defaults(run=_publish)

    command = commands.add_parser("body", help="make the Anny template anew and report how well its parts fit")
    command.add_argument("-o", "--output", type=Path, required=True)
    command.set_defaults(run=_body)

    command = commands.add_parser("sizes", help="what the sizes of the edge preset cost on this machine (minutes)")
    command.add_argument("--runs", type=int, default=40)
    command.set_defaults(run=_sizes)

    command = commands.add_parser("sheet", help="a contact sheet of generated people")
    command.add_argument("-o", "--output", type=Path, required=True)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--count", type=int, default=64)
    command.set_defaults(run=_sheet)
    return parser


def _fit(args: argparse.Namespace) -> int:
    from training.config import FitConfig
    from training.fit import fit

    config = FitConfig.from_yaml(args.config)
    output = args.output or Path("runs") / config.name
    best = fit(config, output, resume=args.resume, max_steps=args.max_steps)
    print(f"best checkpoint: {best}")
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from training.checkpoint import load_checkpoint
    from training.report import accuracy_report, accuracy_table

    report = accuracy_report(load_checkpoint(args.checkpoint), count=args.count)
    print(accuracy_table(report))
    if args.output:
        write_json(args.output, report)
    return 0


def _publish(args: argparse.Namespace) -> int:
    from training.checkpoint import load_checkpoint
    from training.report import accuracy_table, publish

    published = publish(load_checkpoint(args.checkpoint), args.output)
    print(accuracy_table(published.metrics))
    print(f"wrote {args.output} ({args.output.stat().st_size / 1e6:.1f} MB)")
    return 0


def _body(args: argparse.Namespace) -> int:
    from training.bodies.anny import build_anny_template

    template, errors = build_anny_template()
    template.save(args.output)
    print(f"{template.name}: levels {template.level_sizes}, {args.output.stat().st_size / 1e6:.2f} MB")
    for name, error in errors.items():
        print(f"{name:34s} {error:6.2f} mm")
    return 0


def _sizes(args: argparse.Namespace) -> int:
    from training.sizes import size_table

    print(size_table(args.runs))
    return 0


def _sheet(args: argparse.Namespace) -> int:
    from training.data.generator import GeneratedPeople
    from training.data.sheet import contact_sheet

    contact_sheet(GeneratedPeople(args.seed, args.count), args.count, args.output)
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
