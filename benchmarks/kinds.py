"""Saved results of all kinds: which of our Markdown each becomes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metro_edge.errors import UserError
from metro_edge.files import reason


def saved_markdown(path: str | os.PathLike[str], details: bool = True) -> str:
    """Return the Markdown of a saved result of `run`, `stages`, `load`, `roofline`, `against` or `energy`.

    Without `details`, that of `run` is its first table alone, as a README wants it.

    Raises:
        UserError: a file that is missing, none of these, incomplete or of another schema.
    """
    from benchmarks import against_report, energy, energy_report, load, report, roofline, stages
    from benchmarks.load_report import load_markdown
    from benchmarks.roofline_report import roofline_markdown
    from benchmarks.stages_report import stages_markdown
    from benchmarks.tables import report_markdown

    picture = Path(path).with_suffix(".png").name
    writers: dict[str, tuple[int, Callable[[dict[str, Any]], str]]] = {
        stages.KIND: (stages.SCHEMA_VERSION, stages_markdown),
        load.KIND: (load.SCHEMA_VERSION, load_markdown),
        roofline.KIND: (roofline.SCHEMA_VERSION, lambda found: roofline_markdown(found, picture)),
        against_report.KIND: (
            against_report.SCHEMA_VERSION,
            lambda found: against_report.against_markdown(found, picture),
        ),
        energy.KIND: (energy.SCHEMA_VERSION, lambda found: energy_report.energy_markdown(found, picture)),
    }
    found = _read(Path(path))
    kind = found.get("kind")
    if kind == report.KIND:
        return report_markdown(report.read_report(path), details)
    if kind not in writers:
        known = ", ".join([report.KIND, *writers])
        raise UserError(f"{path} is not a benchmark result whose table is known: {kind!r}; known: {known}")
    version, write = writers[kind]
    if found.get("schema_version") != version:
        raise UserError(
            f"{path} has schema version {found.get('schema_version')!r}, this metro-edge reads {version}: measure again"
        )
    try:
        return write(found)
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, StopIteration) as error:
        raise UserError(f"{path} is an incomplete result ({type(error).__name__} {error}): measure again") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the result {path}: {reason(error)}") from None
    except ValueError as error:
        raise UserError(f"{path} is not a benchmark result: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a benchmark result: `python -m benchmarks run` writes them")
    return found
