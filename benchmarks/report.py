"""The result of one benchmark run as a JSON object: its schema, reading and writing.

Schema 2. Times are milliseconds, errors millimetres. An INTERVAL is null or {`low`, `high`}.

- `schema_version`: 2; `kind`: `metro-edge benchmark`; `created`: UTC, ISO 8601; `command`: what gives it again;
  `metro_edge`: version.
- `bundle`: `name` of the network, `checkpoint` {`name`, `sha256`}, `onnx_sha256` {precision: hash}.
- `device`: `processor` (`CPU` or `GPU`), `name`, `backend`, `engine` (library, version, provider),
  `threads` (null: the engine's choice).
- `machine`: what metro_edge.machine.describe_machine returns.
- `latency`: how it was measured: `frame_wh`, `people`, `batch`, `runs` counted calls of each subject, `block`, `warmup`
  uncounted calls, `protocol`.
- `accuracy`: how it was measured: `data`, `seed`, `samples`, `protocol`, `truth_sha256` (of the true meshes, float32,
  in order).
- `intervals`: {`level`, `resamples`, `seed`} of the bootstrap (benchmarks.bootstrap).
- `precisions`: precision -> {
  `latency`: {`network` and `end_to_end`: {`p50_ms`, `p90_ms`, `p95_ms`, `p99_ms`, `mean_ms`, `min_ms`, `calls`,
  `warmup`, `intervals` {`p50_ms`, `p95_ms`: INTERVAL}, `ratio_to_fp32`: null or {`median`, `low`, `high`,
  `interval`: INTERVAL}}},
  `accuracy`: {`mpjpe_mm`, `pa_mpjpe_mm`, `mpvpe_mm`, `intervals` {each of these: INTERVAL}, `per_sample_mm` {`mpjpe`,
  `pa_mpjpe`, `mpvpe`: packed, see `unpack_samples`}, `against_fp32`: null or {for LOSS in `moved`, `mpjpe_change`,
  `pa_mpjpe_change`, `mpvpe_change`: `LOSS_mm`, `LOSS_p95_mm`, `LOSS_worst_mm`, `LOSS_worst_sample`; `intervals`
  {`LOSS_mm`, `LOSS_p95_mm`: INTERVAL}}}}.
  `p99_ms` is null when the runs are too few for it, `LOSS_p95_mm` alike for the samples; an interval when there are
  fewer than 6 samples or rounds. A ratio's `low` and `high` are the extremes over rounds.
  `moved` is the mean distance between the vertices of the precision and those of fp32, each mesh centred on its own
  root; a change is the precision's error less fp32's. Both are taken per sample; `LOSS_mm` is the mean over samples.

Schema 1, still read: without `intervals`, `interval`, `per_sample_mm`, `truth_sha256` and, but for `moved_worst_*`,
p95 and worst of the losses.
"""

from __future__ import annotations

import base64
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.latency import runs_needed
from metro_edge.errors import UserError
from metro_edge.files import json_bytes, reason, replacing
from metro_edge.metrics import METRIC_NAMES

SCHEMA_VERSION = 2
READABLE = (1, 2)
KIND = "metro-edge benchmark"
STAGES = ("network", "end_to_end")
PARTS = ("created", "command", "metro_edge", "bundle", "device", "machine", "latency", "accuracy", "precisions")
LATENCY_KEYS = ("p50_ms", "p95_ms")
ACCURACY_KEYS = tuple(f"{name}_mm" for name in METRIC_NAMES)
LOSSES = ("moved", *(f"{name}_change" for name in METRIC_NAMES))


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
    if report.get("schema_version") not in READABLE:
        raise UserError(
            f"{path} has schema version {report.get('schema_version')!r}, this metro-edge reads "
            f"{' and '.join(map(str, READABLE))}: "
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


def pack_samples(values: ArrayLike) -> str:
    """Return one figure per sample, in order, as base64 of little-endian float32: 6 characters each, not 20."""
    return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()


def unpack_samples(text: str) -> NDArray[np.float64]:
    """Return what `pack_samples` packed, (N,) float64; raises ValueError for what is none, NaN included."""
    values = np.frombuffer(base64.b64decode(text, validate=True), "<f4").astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the error of a sample is not finite")
    return values


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
        if report["schema_version"] > 1:
            numbers += _check_intervals(entry, report["accuracy"]["samples"])
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"a figure of {precision} is not finite")


def _check_intervals(entry: dict[str, Any], samples: int) -> list[float]:
    """Return the ends of all intervals of one precision; raises as `_check` does, and for samples that are missing."""
    accuracy, stages = entry["accuracy"], [entry["latency"][stage] for stage in STAGES]
    found = [accuracy["intervals"][key] for key in ACCURACY_KEYS]
    found += [stage["intervals"][key] for stage in stages for key in LATENCY_KEYS]
    found += [stage["ratio_to_fp32"]["interval"] for stage in stages if stage["ratio_to_fp32"] is not None]
    numbers: list[float] = []
    if (change := accuracy["against_fp32"]) is not None:
        found += [change["intervals"][f"{loss}{kind}"] for loss in LOSSES for kind in ("_mm", "_p95_mm")]
        numbers += [change[f"{loss}{kind}"] for loss in LOSSES for kind in ("_mm", "_worst_mm")]
        numbers += [value for loss in LOSSES if (value := change[f"{loss}_p95_mm"]) is not None]
    for name in METRIC_NAMES:
        if len(unpack_samples(accuracy["per_sample_mm"][name])) != samples:
            raise ValueError(f"the errors per sample are not those of {samples} samples")
    return numbers + [ends[key] for ends in found if ends is not None for key in ("low", "high")]
