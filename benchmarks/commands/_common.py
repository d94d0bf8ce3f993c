"""What several commands share: where results go, and what is printed of them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

RESULTS = Path("benchmarks") / "results"


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add --output, the folder of results."""
    parser.add_argument(
        "-o", "--output", metavar="DIR", type=Path, default=RESULTS, help=f"folder of the results (default: {RESULTS})"
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Add --backend and --threads."""
    parser.add_argument("--backend", metavar="B", default="onnxruntime", help="engine (default: onnxruntime)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the engine's choice)")


def said(markdown: str, paths: Iterable[Path]) -> int:
    """Print a result and where it was saved; returns the exit code."""
    print(markdown.rstrip("\n"))
    print("\n".join(f"wrote {path}" for path in paths), file=sys.stderr)
    return 0


def shown_paths(paths: Iterable[Path]) -> list[str]:
    """Return paths as a command line shows them that gives a result again; see benchmarks.common.shown_path."""
    from benchmarks.common import shown_path

    return [shown_path(path) for path in paths]
