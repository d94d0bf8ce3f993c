"""`python -m benchmarks against`: the same network on other engines."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.commands._common import add_output, said
from metro_edge.errors import MissingExtraError


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "against",
        help="the same network in PyTorch, torch.compile, plain exports and ours",
        description="Time one network on every engine that is here, interleaved: PyTorch, torch.compile, its plain "
        "ONNX export on ONNX Runtime, OpenVINO and TensorRT, and metro-edge's own graphs; as ratios to PyTorch, each "
        "with its largest change of the outputs.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, nargs="?", help="folder or .zip (default: shipped)")
    parser.add_argument("--checkpoint", metavar="CKPT", type=Path, help="the bundle's own (default: the shipped one)")
    parser.add_argument("--body", metavar="NAME=PATH", help="of a released checkpoint, such as smpl=FOLDER")
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="instead of a bundle: a released architecture with seeded weights, not trained, such as "
        "metro-body-hrnet-w64; converted first (minutes, once)",
    )
    parser.add_argument("--processor", metavar="P", default="cpu", help="cpu (default) or gpu")
    parser.add_argument("--threads", metavar="N", type=int, help="of every engine on the CPU (default: all cores)")
    parser.add_argument("--rounds", metavar="N", type=int, default=12, help="turns of all engines (default: 12)")
    add_output(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    try:
        from benchmarks.against import Settings
        from benchmarks.against import run as measure
        from training.bodies import parse_body
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "export,train", "compare engines") from None
    settings = Settings(
        bundle=args.bundle,
        checkpoint=args.checkpoint,
        body=None if args.body is None else parse_body(args.body),
        network=args.network,
        processor=args.processor,
        threads=args.threads,
        rounds=args.rounds,
        output=args.output,
    )
    _, markdown, paths = measure(settings)
    return said(markdown, paths)
