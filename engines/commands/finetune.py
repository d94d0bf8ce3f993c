"""`python -m engines finetune`: a checkpoint whose INT8 export errs less."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metro_edge.errors import MissingExtraError


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "finetune",
        help="checkpoint -> checkpoint whose INT8 export is nearer to FP32 (quantisation-aware fine-tuning)",
        description="Train a checkpoint on with the rounding of its INT8 export in the loop; its own FP32 predictions "
        "on generated people are the aim. Before and after are exported to INT8 and measured on held-out people: "
        "weights that do not gain are not kept. A run that was stopped goes on where it was.",
    )
    parser.add_argument("checkpoint", type=Path, help="of `python -m training fit` or `publish`")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="the checkpoint to write, for `engines convert`"
    )
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER", help="of what a stopped run goes on with (default: OUTPUT-work)"
    )
    parser.add_argument(
        "--train", default="all", metavar="WHAT",
        help="all: weights, each rounded to nearest, biases and norms (default); shifts: biases and scales of norms, "
        "weights stay as they are rounded on data",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=100, help="of the optimiser (100)")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="at the start (2e-6 for all, 3e-5 for shifts)")
    parser.add_argument("--batch", type=int, default=16, help="samples a step (16)")
    parser.add_argument("--samples", type=int, default=1024, help="of the training seed, to train on (1024)")
    parser.add_argument(
        "--calibration-samples", type=int, default=256, help="of the training seed, for ranges (256, at least 16)"
    )
    parser.add_argument("--choice-samples", type=int, default=64, help="held out, to choose the best state by (64)")
    parser.add_argument("--proof-samples", type=int, default=256, help="held out, to measure the result on (256)")
    parser.add_argument("--every", type=int, default=10, metavar="STEPS", help="between looks at them (10)")
    parser.add_argument("--seed", type=int, help="of the held-out samples (default: the run's validation seed)")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="of generated people (default: the run's)")
    parser.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="of one person each, in place of generated people"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fine-tune and print what was gained."""
    try:
        from engines.quantize.finetune import Settings, finetune
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnx", "export,train", "fine-tune checkpoints") from None
    settings = Settings(
        train=args.train,
        steps=args.steps,
        learning_rate=args.learning_rate,
        batch=args.batch,
        samples=args.samples,
        calibration_samples=args.calibration_samples,
        choice_samples=args.choice_samples,
        proof_samples=args.proof_samples,
        every=args.every,
        seed=args.seed,
        data=args.data,
        pictures=args.pictures,
    )
    work = args.work or args.output.with_name(f"{args.output.stem}-work")
    finetune(args.checkpoint, args.output, settings, work)
    return 0
