"""`metro-edge export-triton`: a model repository for NVIDIA Triton."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "export-triton",
        help="write a model repository for NVIDIA Triton",
        description="Write the network (ONNX, or a TensorRT plan) and Python models around it into a model repository, "
        "with two ensembles: NAME_frame takes a decoded BGR frame and boxes, NAME_picture the bytes of a picture file "
        "and boxes; both return joints, vertices and cameras. Triton's Python needs `pip install metro-edge`.",
    )
    parser.add_argument(
        "bundle", metavar="BUNDLE", type=Path, nargs="?", help="folder or .zip (default: the shipped bundle)"
    )
    parser.add_argument("-o", "--output", metavar="REPO", type=Path, required=True, help="the model repository")
    parser.add_argument("--precision", metavar="P", default="fp32", help="which of the bundle's graphs (default: fp32)")
    parser.add_argument(
        "--plan", metavar="PLAN", type=Path, help="TensorRT plan of that graph, from `metro-edge build`"
    )
    parser.add_argument("--name", metavar="NAME", help="of the network (default: the bundle's)")
    parser.add_argument("--max-people", metavar="N", type=int, default=16, help="largest batch (default: 16)")
    parser.add_argument("--instances", metavar="N", type=int, default=1, help="copies of each model (default: 1)")
    parser.add_argument(
        "--kind", metavar="K", default="auto", help="where the network runs: auto (default), gpu or cpu"
    )
    parser.add_argument(
        "--gpus", metavar="G,G", type=parse_numbers, default=(), help="GPUs, such as 0,1 (default: all)"
    )
    parser.add_argument(
        "--delay-us", metavar="US", type=int, default=500, help="how long a request waits for others (default: 500)"
    )
    parser.add_argument("--focal-px", metavar="F", type=float, help="focal length (default: the frame's diagonal)")
    parser.set_defaults(run=run)


def parse_numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of `0,1`; raises argparse.ArgumentTypeError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,1") from None


def run(args: argparse.Namespace) -> int:
    """Write the repository and say what is in it; returns the exit code."""
    from metro_edge.bundle import Bundle
    from metro_edge.triton import TritonOptions, export_triton

    bundle = Bundle.load(args.bundle)
    options = TritonOptions(
        name=args.name or bundle.spec.name,
        max_people=args.max_people,
        instances=args.instances,
        kind=args.kind,
        gpus=args.gpus,
        delay_us=args.delay_us,
        focal_px=args.focal_px,
    )
    for folder in export_triton(bundle, args.precision, args.output, options, args.plan):
        print(folder)
    names = options.names
    print(f"ask {names['frame']} with frame and boxes, or {names['picture']} with picture and boxes")
    return 0
