"""`python -m training tsv`: write generated people as one of METRO's TSV data sets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "tsv", help="write the generated people of a configuration as TSV data sets, as METRO's are"
    )
    parser.add_argument("config", type=Path, help="YAML file of a training run: training/configs/metro_edge.yaml, say")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for train.* and validation.*")
    parser.add_argument("--count", type=int, help="samples of each (default: all of the configuration's)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write both sets and print their YAML files."""
    from metro_edge.errors import UserError
    from metro_edge.files import output_folder
    from training.config import FitConfig
    from training.data.shards import ShardedPeople, people_shards
    from training.data.tsv_export import export_people

    if args.count is not None and args.count < 1:
        raise UserError(f"--count must be at least 1, got {args.count}")
    config = FitConfig.from_yaml(args.config)
    data, spec = config.data, config.spec
    output_folder(args.output)  # before anything is rendered
    sets = {
        "train": (data.train_seed, data.train_count),
        "validation": (data.validation_seed, data.validation_count),
    }
    for name, (seed, count) in sets.items():
        count = count if args.count is None else min(args.count, count)
        folder = people_shards(Path(data.folder), spec, seed=seed, count=count, workers=max(1, data.workers))
        path = export_people(ShardedPeople(folder, spec), args.output, name)
        print(f"wrote {path}")
    return 0
