"""`metro-edge demo`: the shipped picture and clip, and what each precision costs on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metro_edge.cli.run import add_model_options

if TYPE_CHECKING:
    from metro_edge.demo import PrecisionResult

NOTES = """\
Latency: frame -> bodies, one person, {calls} calls after {warmup} to warm up.
Errors: {frames} frames of the shipped rendered clip, joints regressed from the mesh ({joint_set}).
lost: growth of MPVPE over {reference}; moved: mean distance of the vertices from {reference}'s.
{machine}"""


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "demo",
        help="bodies on a shipped picture and clip, with a table of speed and error",
        description="Write overlays of a shipped picture and a shipped clip, and print latency and error of "
        "every precision in the bundle. Takes less than a minute.",
    )
    add_model_options(parser)
    parser.add_argument(
        "--assets", metavar="DIR", type=Path, help="folder of picture, clip and truth (default: shipped)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="OUT",
        default=str(Path("out") / "demo"),
        help="folder (default: out/demo)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the demonstration and print the tables; returns the exit code."""
    from functools import partial

    from tqdm import tqdm

    from metro_edge.bundle import Bundle
    from metro_edge.demo import DemoAssets, evaluate, passport_table, results_table, write_pictures
    from metro_edge.estimator import MeshEstimator
    from metro_edge.files import output_folder
    from metro_edge.machine import describe_machine, machine_line

    bundle, assets = Bundle.load(args.bundle), DemoAssets.load(args.assets)
    folder = output_folder(args.output)
    results: list[PrecisionResult] = []
    for precision in tqdm(bundle.precisions, desc="precisions", leave=False):
        with MeshEstimator.from_bundle(
            bundle, precision, args.backend, threads=args.threads, affinity=args.affinity
        ) as estimator:
            if not results:
                frames = partial(tqdm, desc="clip", unit="frame", leave=False)
                for path in write_pictures(estimator, assets, folder, frames):
                    tqdm.write(str(path))
            results.append(evaluate(estimator, assets))
    print()
    print(results_table(results))
    print(
        NOTES.format(
            calls=" / ".join(str(len(result.latency.samples_ms)) for result in results),
            warmup=results[0].latency.warmup,
            frames=len(assets.frame_ids),
            joint_set=bundle.spec.joint_set,
            reference=results[0].precision,
            machine=f"{machine_line(describe_machine())}; {results[0].device}",
        )
    )
    if table := passport_table(bundle):
        print(f"\nFrom the bundle's passport, {bundle.spec.name}:\n{table}")
    return 0
