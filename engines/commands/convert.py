"""`python -m engines convert`: checkpoint -> verified bundle."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from engines.usage import Usage
from metro_edge.errors import MissingExtraError
from metro_edge.spec import KNOWN_OUTPUTS, OUTPUT_NAMES, PRECISIONS


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "convert",
        help="checkpoint -> bundle: ONNX, FP16, INT8, each verified against PyTorch",
        description="Convert a checkpoint to a bundle. Every precision is run beside PyTorch on held-out samples; "
        "one that errs beyond its tolerance is refused, and then nothing is written.",
    )
    parser.add_argument(
        "checkpoint", type=Path,
        help="of `python -m training fit` or `publish`, or METRO's: metro_3dpw_state_dict.bin, a checkpoint folder",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, required=True, help="the bundle: a folder, or a .zip file")
    parser.add_argument(
        "--precision", nargs="+", default=list(PRECISIONS), metavar="P", help="of fp32 fp16 int8 (default: all)"
    )
    parser.add_argument(
        "--calibration-samples", type=int, default=256, help="training samples for INT8 (256, at least 16)"
    )
    parser.add_argument("--calibration", default="mse", metavar="M", help="mse (default), percentile, entropy or max")
    parser.add_argument(
        "--rounding",
        metavar="R",
        help="of INT8 weights: data (default, unless `finetune` found the other better), or nearest, which is quick",
    )
    parser.add_argument("--verify-samples", type=int, default=64, help="held-out samples to compare on (64)")
    parser.add_argument("--seed", type=int, help="of the held-out samples (default: the run's validation seed)")
    parser.add_argument(
        "--tolerance-mm", nargs="+", default=[], metavar="P=MM",
        help="largest mean vertex distance from PyTorch (default: fp32=0.01 fp16=1 int8=10)",
    )  # fmt: skip
    parser.add_argument("--data", type=Path, help="folder of generated samples (default: the run's)")
    parser.add_argument(
        "--body", metavar="NAME=PATH",
        help="the network's body, such as smpl=PATH of a template or a folder with METRO's files; released networks "
        "need it",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER",
        help="calibrate and verify on these pictures of one person each (default: generated people)",
    )  # fmt: skip
    parser.add_argument("--licence", default="not stated", help="of the weights, written into the passport")
    parser.add_argument(
        "--outputs", nargs="+", default=list(OUTPUT_NAMES), metavar="NAME",
        help=f"of {' '.join(KNOWN_OUTPUTS)} (default: {' '.join(OUTPUT_NAMES)}); camera joints mesh_joints is a "
        "network of joints alone",
    )  # fmt: skip
    parser.add_argument("--no-fold", action="store_true", help="export as trained, to compare with: nothing is folded")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Convert and print what was written."""
    try:
        from engines.convert import Settings, convert, tolerances_from_text
        from training.bodies import parse_body
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnx", "export,train", "convert checkpoints") from None
    usage = Usage()
    settings = Settings(
        precisions=tuple(args.precision),
        calibration_samples=args.calibration_samples,
        verify_samples=args.verify_samples,
        seed=args.seed,
        method=args.calibration,
        rounding=args.rounding,
        tolerances_mm=tolerances_from_text(args.tolerance_mm),
        data=args.data,
        pictures=args.pictures,
        body=None if args.body is None else parse_body(args.body),
        licence=args.licence,
        outputs=tuple(args.outputs),
        **({"folds": ()} if args.no_fold else {}),
    )
    bundle = convert(args.checkpoint, args.output, settings, usage=usage)
    entries = bundle.passport["files"].values()
    size = sum(entry["bytes"] for entry in entries) / 1e6
    print(f"wrote {args.output}: {', '.join(bundle.precisions)}, {size:.1f} MB; {usage}")
    return 0
