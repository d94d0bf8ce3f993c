"""`python -m engines quantize`: the fastest mix of precisions that keeps a budget in millimetres."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metro_edge.errors import MissingExtraError, UserError

METRICS = ("mpjpe", "mpvpe", "moved")
METHODS = ("mse", "percentile", "entropy", "max", "best")


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "quantize",
        help="bundle + budget in mm -> fastest mix of INT8, FP16 and FP32, with a report",
        description="Search the fastest mix of precisions whose loss, measured on held-out samples, keeps a budget. "
        "Times are measured on a backend of this machine, or predicted for a device. A search that was stopped goes on "
        "where it was. Exit code 2, and no bundle, when only FP32 keeps the budget or nothing is faster.",
    )
    parser.add_argument("bundle", type=Path, help="folder or .zip; its fp32 network is quantised")
    parser.add_argument("--max-loss-mm", type=float, required=True, metavar="MM", help="the budget")
    parser.add_argument(
        "--metric", choices=METRICS, default="mpjpe",
        help="what the budget is of: MPJPE or MPVPE lost to fp32, or the mean distance moved from it (mpjpe)",
    )  # fmt: skip
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("-o", "--output", type=Path, help="the bundle to write: a folder, or a .zip file")
    place.add_argument("--replace", action="store_true", help="write into BUNDLE itself")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="for the report (default: OUTPUT-report)")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="of what is measured (default: `work` in the folder of the report)"
    )
    group = parser.add_argument_group("samples (docs/quantisation.md)")
    group.add_argument(
        "--data", type=Path, metavar="FOLDER",
        help="of shards, of pictures of one person each, or, empty at first, where generated people are kept (the "
        "training's)",
    )  # fmt: skip
    group.add_argument("--seed", type=int, help="of generated people to test on (default: the bundle's held-out seed)")
    group.add_argument("--samples", type=int, default=128, help="to search on (128)")
    group.add_argument("--proof-samples", type=int, default=128, help="that the search never sees (128)")
    group.add_argument("--calibration-samples", type=int, default=256, help="that set ranges (256, at least 16)")
    group = parser.add_argument_group("what is searched")
    group.add_argument(
        "--precisions", nargs="+", default=["int8", "fp16"], metavar="P", help="besides fp32 (int8 fp16)"
    )
    group.add_argument("--method", choices=METHODS, default="best", help="of calibration; best compares all (best)")
    group.add_argument(
        "--smooth", action=argparse.BooleanOptionalAction,
        help="move outliers of activations into weights (default: where it helps)",
    )  # fmt: skip
    group.add_argument(
        "--rounding", action=argparse.BooleanOptionalAction,
        help="round INT8 weights on data, not each to its nearest level (default: where it helps)",
    )  # fmt: skip
    group.add_argument(
        "--detail", choices=("auto", "layers", "groups", "coarse"), default="auto",
        help="measure each layer, or neighbours together first, or at most 17 groups and no layer (auto: layers or "
        "groups by the size of the network)",
    )  # fmt: skip
    group.add_argument("--evaluations", type=int, default=40, help="mixes whose loss is measured (40)")
    group = parser.add_argument_group("whose time counts")
    group.add_argument(
        "--backend", metavar="NAME", help="onnxruntime or openvino, measured on this machine (default: onnxruntime)"
    )
    group.add_argument("--threads", type=int, help="of the backend (default: it decides)")
    group.add_argument("--device", metavar="NAME", help="predict for a device such as orin-nano, instead of measuring")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, write bundle and report."""
    if args.device is not None and (args.backend is not None or args.threads is not None):
        raise UserError(
            "--device predicts; --backend and --threads are for times measured here: leave one of them away"
        )
    try:
        from engines.quantize.run import quantize
        from engines.quantize.settings import Settings
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnx", "export,train", "quantise bundles") from None
    settings = Settings(
        max_loss_mm=args.max_loss_mm,
        metric=args.metric,
        data=args.data,
        seed=args.seed,
        samples=args.samples,
        proof_samples=args.proof_samples,
        calibration_samples=args.calibration_samples,
        method=args.method,
        smooth=args.smooth,
        rounding=args.rounding,
        precisions=tuple(args.precisions),
        backend=args.backend or "onnxruntime",
        threads=args.threads,
        device=args.device,
        detail=args.detail,
        evaluations=args.evaluations,
    )
    output = args.bundle if args.replace else args.output
    report = args.report or output.parent / f"{output.stem}-report"
    quantize(args.bundle, output, settings, report, args.work or report / "work")
    return 0
