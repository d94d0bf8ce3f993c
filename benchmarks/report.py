"""The result of one benchmark run as a JSON object: its schema, reading and writing.

Schema 3. Times are milliseconds, errors millimetres, shares 0 to 1. An INTERVAL is null or {`low`, `high`}.

- `schema_version`: 3; `kind`: `metro-edge benchmark`; `created`: UTC, ISO 8601; `command`: what gives it again;
  `metro_edge`: version.
- `bundle`: `name` of the network, `checkpoint` {`name`, `sha256`}, `onnx_sha256` {precision: hash}.
- `device`: `processor` (`CPU` or `GPU`), `name`, `backend`, `engine` (library, version, provider),
  `threads` (null: the engine's choice), `beside` (absent, or further backend -> engine).
- `machine`: what metro_edge.machine.describe_machine returns.
- `latency`: how it was measured: `frame_wh`, `people`, `batch`, `runs` counted calls of each subject, `block`, `warmup`
  uncounted calls, `protocol`.
- `accuracy`: how it was measured: `data`, `seed` (null: not generated), `samples`, `protocol`, `truth_sha256` (of the
  true meshes, or joints, float32, in order), `joint_set` (its joints are the keys of `per_joint`), `pck_mm`, `auc_mm`
  [first, last, number of thresholds], `reprojection` (in words).
- `motion`: null where it was left out, or how it was measured: `data`, `walks`, `frames`, `missed` (people in a frame
  whom a precision did not find), `fps`, `true_jitter_mm` (of the truth), `protocol`.
- `crops`: null where it was left out, or how it was measured: `samples`, `crops` [{`name`, `crop_rule`, `box`}], the
  network's own first, `seed`, `protocol`.
- `intervals`: {`level`, `resamples`, `seed`} of the bootstrap (benchmarks.bootstrap).
- `precisions`: precision, of further backends with their name (`int8 openvino`) -> {
  `latency`: {`network` and `end_to_end`: {`p50_ms`, `p90_ms`, `p95_ms`, `p99_ms`, `mean_ms`, `min_ms`, `calls`,
  `warmup`, `intervals` {`p50_ms`, `p95_ms`: INTERVAL}, `ratio_to_fp32`: null or {`median`, `low`, `high`,
  `interval`: INTERVAL}, `samples_ms`: counted calls in order, packed, absent in some results of before}},
  `accuracy`: {`mpjpe_mm`, `pa_mpjpe_mm`, `mpvpe_mm`, `intervals` {each of these: INTERVAL}, `per_sample_mm` {`mpjpe`,
  `pa_mpjpe`, `mpvpe`: packed, see `unpack_samples`}, `against_fp32`: null or {for LOSS in `moved`, `mpjpe_change`,
  `pa_mpjpe_change`, `mpvpe_change`: `LOSS_mm`, `LOSS_p95_mm`, `LOSS_worst_mm`, `LOSS_worst_sample`; `intervals`
  {`LOSS_mm`, `LOSS_p95_mm`: INTERVAL}},
  `per_joint` {name of the joint: {`error_mm`, `pa_error_mm`, `change_mm` (against FP32); `error_interval`,
  `pa_error_interval`, `change_interval`: INTERVAL}},
  `shares` {for KEY in `pck`, `auc`, `pa_pck`, `pa_auc`: `KEY`, `KEY_change`; `KEY_interval`, `KEY_change_interval`},
  `reprojection`: null without true 2D joints, or {`samples`; for UNIT in `px`, `box_share`: `UNIT`, `UNIT_p95`,
  `UNIT_change`, `UNIT_change_p95`, and each with `_interval`}; `px` are null where the frame's scale is not known},
  `worst`: null for FP32, or {`sample` whose MPJPE rose most, `mpjpe_mm`, `fp32_mpjpe_mm`, `loss_mm`, `picture` (file
  beside this one)},
  `motion`: null or {for KEY in `acceleration_error`, `jitter`: `KEY_mm`, `KEY_gain` (0.05: 5 % above FP32's);
  `KEY_interval`, `KEY_gain_interval`},
  `crops`: null or {name of the crop: {`mpjpe_mm`, `change_mm` (against the first crop), `against_fp32_mm` (on the same
  crop); `mpjpe_interval`, `change_interval`, `against_fp32_interval`}}}.
  `p99_ms` is null when the runs are too few for it, `LOSS_p95_mm` and the like alike for the samples; an interval when
  there are fewer than 6 samples, rounds or walks; a change for FP32 itself; the figures of the mesh (`mpvpe`) where the
  data has no meshes. A ratio's `low` and `high` are the extremes over rounds.
  `moved` is the mean distance between the vertices of the precision and those of fp32, each mesh centred on its own
  root; a change is the precision's figure less fp32's. Both are taken per sample; `LOSS_mm` is the mean over samples.

Still read: schema 2, without what follows `truth_sha256` and `against_fp32` and without `motion`, `crops` and `worst`;
schema 1, moreover without `intervals`, `interval`, `per_sample_mm`, `truth_sha256` and, but for `moved_worst_*`, p95
and worst of the losses.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.latency import runs_needed
from metro_edge.errors import UserError
from metro_edge.files import json_bytes, reason, replacing
from metro_edge.joints import joint_set
from metro_edge.metrics import METRIC_NAMES

SCHEMA_VERSION = 3
READABLE = (1, 2, 3)
KIND = "metro-edge benchmark"
STAGES = ("network", "end_to_end")
PARTS = ("created", "command", "metro_edge", "bundle", "device", "machine", "latency", "accuracy", "precisions")
LATENCY_KEYS = ("p50_ms", "p95_ms")
ACCURACY_KEYS = tuple(f"{name}_mm" for name in METRIC_NAMES)
MAY_LACK = {"mpvpe_mm"}  # figures of meshes, which some data sets do not have
SHARES = ("pck", "auc", "pa_pck", "pa_auc")
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
            f"{', '.join(map(str, READABLE))}: "
            "run the benchmark again"
        )
    try:
        _check(report)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is an incomplete benchmark result: {error}; run the benchmark again") from None
    return report


def write_report(
    folder: Path, stem: str, report: dict[str, Any], markdown: str, pictures: Mapping[str, bytes] | None = None
) -> tuple[Path, Path]:
    """Write `<stem>.json`, `<stem>.md` and pictures by name into `folder`, all or none; raises UserError."""
    targets = folder / f"{stem}.json", folder / f"{stem}.md"
    _check(report)
    files = {target.name: data for target, data in zip(targets, (json_bytes(report), markdown.encode()), strict=True)}
    with contextlib.ExitStack() as stack:
        for name, data in [*files.items(), *(pictures or {}).items()]:
            stack.enter_context(replacing(folder / name)).write_bytes(data)
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
        times = [entry["latency"][stage][key] for stage in STAGES for key in LATENCY_KEYS]
        if not all(value > 0 for value in times):
            raise ValueError(f"a time of {precision} is not positive")
        numbers = list(times)
        numbers += _known(entry["accuracy"], report["schema_version"])
        ratios = [entry["latency"][stage]["ratio_to_fp32"] for stage in STAGES]
        numbers += [r[key] for r in ratios if r is not None for key in ("median", "low", "high")]
        if (change := entry["accuracy"]["against_fp32"]) is not None:
            numbers += [change[key] for key in ("moved_mm", "moved_worst_mm", "mpjpe_change_mm")]
        if report["schema_version"] > 1:
            numbers += _check_intervals(entry, report["accuracy"]["samples"])
        if report["schema_version"] > 2:
            numbers += _check_details(report, entry)
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"a figure of {precision} is not finite")


def _known(accuracy: dict[str, Any], version: int) -> list[float]:
    """Return the mean errors that are there; those of meshes may be null from schema 3 on."""
    lacking = MAY_LACK if version > 2 else set()
    return [accuracy[key] for key in ACCURACY_KEYS if accuracy[key] is not None or key not in lacking]


def _check_intervals(entry: dict[str, Any], samples: int) -> list[float]:
    """Return the ends of all intervals of one precision; raises as `_check` does, and for samples that are missing."""
    accuracy, stages = entry["accuracy"], [entry["latency"][stage] for stage in STAGES]
    found = [accuracy["intervals"][key] for key in ACCURACY_KEYS]
    found += [stage["intervals"][key] for stage in stages for key in LATENCY_KEYS]
    found += [stage["ratio_to_fp32"]["interval"] for stage in stages if stage["ratio_to_fp32"] is not None]
    numbers: list[float] = []
    measured = [name for name in METRIC_NAMES if accuracy[f"{name}_mm"] is not None]
    if (change := accuracy["against_fp32"]) is not None:
        losses = [loss for loss in LOSSES if loss.removesuffix("_change") in ("moved", *measured)]
        found += [change["intervals"][f"{loss}{kind}"] for loss in losses for kind in ("_mm", "_p95_mm")]
        numbers += [change[f"{loss}{kind}"] for loss in losses for kind in ("_mm", "_worst_mm")]
        numbers += [value for loss in losses if (value := change[f"{loss}_p95_mm"]) is not None]
    for name in measured:
        if len(unpack_samples(accuracy["per_sample_mm"][name])) != samples:
            raise ValueError(f"the errors per sample are not those of {samples} samples")
    return numbers + [ends[key] for ends in found if ends is not None for key in ("low", "high")]


def _check_details(report: dict[str, Any], entry: dict[str, Any]) -> list[float]:
    """Return the figures that schema 3 added; raises as `_check` does."""
    accuracy = entry["accuracy"]
    joints = joint_set(report["accuracy"]["joint_set"]).names
    if set(accuracy["per_joint"]) != set(joints):
        raise ValueError(f"the joints are not those of {report['accuracy']['joint_set']}")
    required = [accuracy["per_joint"][name][key] for name in joints for key in ("error_mm", "pa_error_mm")]
    required += [accuracy["shares"][name] for name in SHARES]
    if (projected := accuracy["reprojection"]) is not None:
        required.append(projected["box_share"])
    if entry["worst"] is not None:
        required += [entry["worst"][key] for key in ("sample", "mpjpe_mm", "fp32_mpjpe_mm", "loss_mm")]
    for part, keys in (("motion", ("acceleration_error_mm", "jitter_mm")), ("crops", ())):
        if (report[part] is None) != (entry[part] is None):
            raise ValueError(f"{part} is there without how it was measured, or the other way round")
        required += [entry[part][key] for key in keys if entry[part] is not None]
    for crop in report["crops"]["crops"] if report["crops"] is not None else ():
        required.append(entry["crops"][crop["name"]]["mpjpe_mm"])
    return [*required, *_numbers([accuracy[key] for key in ("per_joint", "shares", "reprojection")]),
            *_numbers([entry["worst"], entry["motion"], entry["crops"]])]  # fmt: skip


def _numbers(value: Any) -> Iterator[float]:
    """Yield all numbers of a JSON value."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)
    elif isinstance(value, int | float):
        yield value
