"""`python -m training fit`: train a network from a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metro_edge.errors import UserError


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser("fit", help="train a network from a configuration")
    parser.add_argument("config", type=Path, help="YAML file, such as training/configs/metro_edge.yaml")
    parser.add_argument("-o", "--output", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint of the run")
    parser.add_argument("--max-steps", type=int, default=-1, help="stop after so many steps (default: -1, no limit)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train and print the path of the best checkpoint."""
    from training.config import FitConfig
    from training.fit import fit

    if args.max_steps != -1 and args.max_steps < 1:
        raise UserError(f"--max-steps must be at least 1, or -1 for no limit, got {args.max_steps}")
    config = FitConfig.from_yaml(args.config)
    output = args.output or Path("runs") / config.name
    best = fit(config, output, resume=args.resume, max_steps=args.max_steps)
    print(f"best checkpoint: {best}")
    return 0
