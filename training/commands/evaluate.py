"""`python -m training evaluate`: accuracy of a network, on held-out samples beside baselines or by a named protocol."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from metro_edge.errors import UserError
from metro_edge.spec import CROP_RULES, PRECISIONS

PROTOCOL_NAMES = ("generated", "human36m-p2", "3dpw-neutral", "3dpw-gendered", "up3d", "freihand")
# What --protocol alone makes use of: given without it, it would be passed over in silence.
PROTOCOL_OPTIONS = (
    "data", "body", "smpl", "crop_rule", "skip_bad", "seed", "tta", "scales", "rotations", "submission", "precision",
    "device", "batch_size", "workers",
)  # fmt: skip


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "evaluate",
        help="accuracy of a network",
        description="Without --protocol: a checkpoint on its run's held-out samples, beside two predictions that look "
        "at no image. With --protocol: a checkpoint of ours, one that METRO released, or a bundle, by that protocol.",
    )
    parser.add_argument("network", type=Path, help="checkpoint (ours or METRO's), or bundle (folder or .zip)")
    parser.add_argument("--count", type=int, help="only the first samples (default: all; generated people: 500)")
    parser.add_argument("-o", "--output", type=Path, help="write the figures to this JSON file as well")
    group = parser.add_argument_group("protocols (docs/evaluation.md)")
    group.add_argument("--protocol", choices=PROTOCOL_NAMES)
    group.add_argument("--data", default="", help="METRO's .yaml, or the folder of the data set's own files")
    group.add_argument("--body", default="", help="NAME=PATH, such as smpl=FOLDER, for networks that METRO released")
    group.add_argument("--smpl", default="", help="folder of the SMPL or MANO files (default: the folder of --body)")
    group.add_argument(
        "--crop-rule", nargs="+", choices=CROP_RULES, help="one row each (default: as the network learnt it)"
    )
    group.add_argument("--skip-bad", action="store_true", help="leave out unusable samples, and say which")
    group.add_argument("--seed", type=int, help="of generated people (default: the run's held-out seed)")
    group.add_argument("--tta", action="store_true", help="METRO's for hands: 5 scales x 19 rotations, 95 views")
    group.add_argument("--scales", type=float, nargs="+", help="test-time augmentation with these scales")
    group.add_argument("--rotations", type=float, nargs="+", help="... and these rotations in degrees")
    group.add_argument("--submission", type=Path, help="write FreiHAND's submission file, a .zip, here")
    group.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of a bundle (default: fp32)")
    group.add_argument("--device", default="auto", help="of PyTorch: cpu, cuda (default: a GPU if there is one)")
    group.add_argument("--batch-size", type=int, default=32)
    group.add_argument("--workers", type=int, default=2, help="processes that read pictures (default: 2)")
    defaults = {name: parser.get_default(name) for name in PROTOCOL_OPTIONS}
    parser.set_defaults(run=run, protocol_defaults=defaults)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the table."""
    from metro_edge.files import write_json
    from training.files import check_writable

    for name, least in (("count", 1), ("batch_size", 1), ("workers", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    for path in filter(None, (args.output, args.submission)):
        check_writable(path)
    report, text = _by_protocol(args) if args.protocol else _beside_baselines(args)
    print(text)
    if args.output:
        write_json(args.output, report)
    return 0


def _beside_baselines(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    given = [name for name, default in args.protocol_defaults.items() if getattr(args, name) != default]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} needs --protocol, one of {', '.join(PROTOCOL_NAMES)}")
    from metro_edge.files import kind_of_path
    from training.checkpoint import load_checkpoint
    from training.report import accuracy_report, accuracy_table

    if kind_of_path(args.network) == "folder" or args.network.suffix == ".zip":
        raise UserError(f"{args.network} is a bundle, which needs --protocol, such as --protocol generated")
    report = accuracy_report(load_checkpoint(args.network), count=args.count)
    return report, accuracy_table(report)


def _by_protocol(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    from dataclasses import replace

    from training.bodies import parse_body
    from training.data.freihand import COUNT, write_submission
    from training.data.protocol_sets import open_protocol_set
    from training.networks import open_network
    from training.protocol_run import moved_mm, protocol_report, protocol_table, run_protocol
    from training.protocols import protocol
    from training.tta import PLAIN

    chosen = protocol(args.protocol)
    views = _views(args)
    if args.submission and chosen.name != "freihand":
        raise UserError(f"a submission file belongs to protocol freihand, not to {chosen.name}")
    if args.submission and args.count is not None:
        raise UserError("--submission needs every picture of the set: leave --count away")
    started = time.perf_counter()
    network = open_network(args.network, args.body, args.precision, args.device)
    chosen.check(network.spec)
    smpl = args.smpl or _folder(parse_body(args.body)[1] if args.body else "")
    seed = network.held_out_seed if args.seed is None else args.seed
    rules = list(dict.fromkeys(args.crop_rule or [network.spec.crop_rule]))
    people, used = open_protocol_set(
        chosen, args.data, replace(network.spec, crop_rule=rules[0]), network.template,
        smpl=smpl, seed=seed, count=args.count, skip_bad=args.skip_bad,
    )  # fmt: skip
    if args.submission and len(people) != COUNT:
        raise UserError(f"FreiHAND's submission wants {COUNT} pictures, there are {len(people)} in {args.data}")
    rows = run_protocol(
        used, network.predict, people, network.template, rules=rules, batch_size=args.batch_size,
        workers=args.workers, views=views, skip_bad=args.skip_bad, count=args.count,
        keep=len(rules) > 1 or args.submission is not None,
    )  # fmt: skip
    first = rows[rules[0]]
    facts = {
        "network": f"{network.spec.name}, {network.engine}, checkpoint {network.sha256[:12]}",
        "data": str(args.data) or f"seed {seed}",
        "test-time augmentation": views.describe() if views != PLAIN else "none",
        "seconds": round(time.perf_counter() - started, 1),
    }
    report = protocol_report(rows, run=facts, checkpoint_sha256=network.sha256)
    for row in report["rows"][1:]:
        row["moved_mm"] = round(moved_mm(first, rows[row["crop_rule"]]), 4)
    if args.submission:
        report["submission"] = str(write_submission(args.submission, first.joints, first.vertices))
    return report, protocol_table(report)


def _views(args: argparse.Namespace) -> Any:
    from training.tta import METRO_HANDS, PLAIN, TestTimeViews

    if args.tta:
        if args.scales or args.rotations:
            raise UserError("--tta is METRO's set of views; leave it away to choose --scales and --rotations")
        return METRO_HANDS
    if args.scales or args.rotations:
        return TestTimeViews(tuple(args.scales or (1.0,)), tuple(args.rotations or (0.0,)))
    return PLAIN


def _folder(path: str) -> str:
    return path if path and Path(path).is_dir() else ""
