"""`metro-edge plans`: what is in the cache of plans, and what may go."""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metro_edge.plans.cache import Entry


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "plans",
        help="list and prune the cache of plans",
        description="List the plans that `metro-edge build` keeps in $METRO_EDGE_CACHE/plans, else "
        "$XDG_CACHE_HOME/metro-edge/plans, else ~/.cache/metro-edge/plans, those used last first.",
    )
    parser.add_argument("--prune", action="store_true", help="remove plans that are damaged or of an older kind")
    parser.add_argument("--older-than", metavar="DAYS", type=float, help="with --prune: also those not used so long")
    parser.add_argument("--all", action="store_true", help="with --prune: all of them")
    parser.add_argument("--json", action="store_true", help="print a list in JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """List or prune; returns the exit code."""
    from metro_edge.cli import printable
    from metro_edge.errors import UserError
    from metro_edge.plans.cache import cache_folder, entries, prune

    if not args.prune and (args.all or args.older_than is not None):
        raise UserError("--all and --older-than belong to --prune")
    if args.older_than is not None and not args.older_than >= 0:  # NaN too
        raise UserError(f"--older-than {args.older_than:g}: a number of days from 0 on was expected")
    found, failure = [], None
    try:
        for entry in prune(everything=args.all, older_than_days=args.older_than) if args.prune else entries():
            found.append(entry)
    except UserError as error:  # of some that could not be removed: the others are told of first
        failure = error
    if args.json:
        print(json.dumps([_described(entry) for entry in found], indent=2))
    else:
        for entry in found:
            print(printable(_line(entry)))
        size = sum(entry.size_bytes for entry in found) / 1e6
        verb = "removed from" if args.prune else "in"
        print(f"{len(found)} plan{'' if len(found) == 1 else 's'} {verb} {cache_folder()}, {size:.1f} MB")
    if failure is not None:
        raise failure
    return 0


def _line(entry: Entry) -> str:
    days = (time.time() - entry.used_s) / 86400
    used = f"{entry.size_bytes / 1e6:.1f} MB, used {days:.0f} days ago"
    if entry.info is None:
        return f"{entry.path.name}: {used}; not usable: {entry.problem}"
    info = entry.info
    where = info.gpu or ", ".join(info.compute_capabilities) or "unknown GPU"
    where += f" in {info.power_mode}" if info.power_mode else ""
    batches = " ".join(map(str, info.profiles))
    return f"{entry.path.name}: {info.library} {info.library_version}, {where}, batch {batches}, {used}"


def _described(entry: Entry) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "path": str(entry.path),
        "size_bytes": entry.size_bytes,
        "used_s": entry.used_s,
        "problem": entry.problem,
        "info": None if entry.info is None else asdict(entry.info),
    }
