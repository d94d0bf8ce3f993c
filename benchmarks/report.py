"""The result of one benchmark run as a JSON object: its schema, reading and writing.

Schema 1. Times are milliseconds, errors millimetres.

- `schema_version`: 1; `kind`: `metro-edge benchmark`; `created`: UTC, ISO 8601; `command`: what gives it again;
  `metro_edge`: version.
- `bundle`: `name` of the network, `checkpoint` {`name`, `sha256`}, `onnx_sha256` {precision: hash}.
- `device`: `processor` (`CPU` or `GPU`), `name`, `backend`, `engine` (library, version, provider),
  `threads` (null: the engine's choice).
- `machine`: what metro_edge.machine.describe_machine returns.
- `latency`: how it was measured: `frame_wh`, `people`, `batch`, `runs` counted calls of each subject, `block`, `warmup`
  uncounted calls, `protocol`.
- `accuracy`: how it was measured: `data`, `seed`, `samples`, `protocol`.
- `precisions`: precision -> {
  `latency`: {`network` and `end_to_end`: {`p50_ms`, `p90_ms`, `p95_ms`, `p99_ms`, `mean_ms`, `min_ms`, `calls`,
  `warmup`, `ratio_to_fp32`: null or {`median`, `low`, `high`}}},
  `accuracy`: {`mpjpe_mm`, `pa_mpjpe_mm`, `mpvpe_mm`, `against_fp32`: null or {`moved_mm`, `moved_worst_mm`,
  `moved_worst_sample`, `mpjpe_change_mm`, `pa_mpjpe_change_mm`, `mpvpe_change_mm`}}}.
  `p99_ms` is null when the runs are too few for it.
  `moved_mm` is the mean over samples of the mean distance between the vertices of the precision and those of fp32,
  each mesh centred on its own root; a change is the mean over samples of the precision's error less fp32's.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from benchmarks.latency import runs_needed
from metro_edge.errors import UserError
from metro_edge.files import json_bytes, reason, replacing

SCHEMA_VERSION = 1
KIND = "metro-edge benchmark"
STAGES = ("network", "end_to_end")
PARTS = ("created", "command", "metro_edge", "bundle", "device", "machine", "latency", "accuracy", "precisions")
LATENCY_KEYS = ("p50_ms", "p95_ms")
ACCURACY_KEYS = ("mpjpe_mm", "pa_mpjpe_mm", "mpvpe_mm")


def read_report(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a saved result; raises UserError when it is missing, not one, incomplete or of another schema."""
    try:
        report = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the result {path}: {reason(error)}") from None
    except ValueError as error:
        raise UserError(f"{path} is not a benchmark result: {error}") from None
    if not isinstance(report, dict) or report.get("kind") != KIND:
        raise UserError(f"{path} is not a benchmark result: `python -m benchmarks run` writes them")
    if report.get("schema_version") != SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {report.get('schema_version')!r}, this metro-edge reads {SCHEMA_VERSION}: "
            "run the benchmark again"
        )
    try:
        _check(report)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is an incomplete benchmark result: {error}; run the benchmark again") from None
    return report


def write_report(folder: Path, stem: str, report: dict[str, Any], markdown: str) -> tuple[Path, Path]:
    """Write `<stem>.json` and `<stem>.md` into `folder`, both or none; raises UserError when that fails."""
    targets = folder / f"{stem}.json", folder / f"{stem}.md"
    _check(report)
    with replacing(targets[0]) as json_file, replacing(targets[1]) as markdown_file:
        json_file.write_bytes(json_bytes(report))
        markdown_file.write_text(markdown, encoding="utf-8")
    return targets


def latency_entry(summary: dict[str, float], runs: int) -> dict[str, float | None]:
    """Return metro_edge.timing.Latency's summary with null for percentiles that `runs` calls do not give."""
    needed = {f"p{percent}_ms": runs_needed(percent) for percent in (50, 90, 95, 99)}
    return {key: None if runs < needed.get(key, 1) else value for key, value in summary.items()}


def _check(report: dict[str, Any]) -> None:
    """Raise KeyError, TypeError, AttributeError or ValueError unless the parts that tables need are there."""
    for part in PARTS:
        if part not in report:
            raise ValueError(f"{part!r} is missing")
    if not report["precisions"]:
        raise ValueError("no precision was measured")
    for precision, entry in report["precisions"].items():
        numbers = [entry["latency"][stage][key] for stage in STAGES for key in LATENCY_KEYS]
        numbers += [entry["accuracy"][key] for key in ACCURACY_KEYS]
        ratios = [entry["latency"][stage]["ratio_to_fp32"] for stage in STAGES]
        numbers += [r[key] for r in ratios if r is not None for key in ("median", "low", "high")]
        if (change := entry["accuracy"]["against_fp32"]) is not None:
            numbers += [change[key] for key in ("moved_mm", "moved_worst_mm", "mpjpe_change_mm")]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"a figure of {precision} is not finite")
