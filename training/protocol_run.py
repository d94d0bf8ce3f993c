"""Run a network over a data set by a protocol: one process, every sample once, means over samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, default_collate
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.metrics import mean_mm, mpvpe
from metro_edge.template import BodyTemplate
from training.data.labelled import BadSampleError, LabelledSet, check_picture, make_item
from training.data.loading import PlainLoader
from training.evaluate import Predict
from training.protocols import CROP_RULE_WORDS, TITLES, Protocol, Truth
from training.tta import PLAIN, TestTimeViews

Floats = NDArray[np.float32]
Batch = dict[str, Any]


@dataclass
class ProtocolResult:
    """What came of a network under a protocol.

    Attributes:
        protocol: by which.
        errors: metric -> errors of its labelled samples, metres or F-scores; empty where undefined.
        samples: that were predicted.
        skipped: messages of the bad samples that were stepped over.
        dropped: messages of the bad label rows and files that were left out when the set was opened.
        left_out: why -> how many rows the data set's own rules left out.
        vertices: (samples, V, 3) root-centred meshes in metres, in the data's order; empty unless they were kept.
        joints: (samples, J, 3) regressed from them.
    """

    protocol: Protocol
    errors: dict[str, NDArray[np.float64]]
    samples: int
    skipped: list[str] = field(default_factory=list)
    dropped: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    vertices: Floats = field(default_factory=lambda: np.zeros((0, 0, 3), np.float32))
    joints: Floats = field(default_factory=lambda: np.zeros((0, 0, 3), np.float32))

    def means(self) -> dict[str, float | None]:
        """Return per metric the mean over samples, mm or F-score in [0, 1]; None where it is undefined."""
        return {
            name: None if not len(values) else float(values.mean()) if name.startswith("f_") else mean_mm(values)
            for name, values in self.errors.items()
        }


class _EvaluationItems(Dataset[Batch]):
    """Items of a set, each sample read once; `image` is (R, K, 3, S, S): crop rules, views."""

    def __init__(
        self, people: LabelledSet, rules: Sequence[str], views: TestTimeViews, skip_bad: bool, count: int | None
    ) -> None:
        if count is not None and not 1 <= count <= len(people):
            raise UserError(f"the set has {len(people)} samples, cannot take {count}")
        self.people, self.views, self.skip_bad = people, views, skip_bad
        self.specs = [replace(people.spec, crop_rule=rule) for rule in rules]
        self.count = len(people) if count is None else count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        try:
            picture = check_picture(self.people.picture(index), self.people.spec)
        except BadSampleError as error:
            if not self.skip_bad:
                raise
            return {"bad": str(error)}
        images = torch.stack([self.views.images(picture, spec) for spec in self.specs])
        return {**make_item(picture, self.specs[0]), "image": images}


def _collate(items: list[Batch]) -> Batch:
    good = [item for item in items if "bad" not in item]
    batch: Batch = default_collate(good) if good else {}
    return {**batch, "skipped": [item["bad"] for item in items if "bad" in item]}


def run_protocol(
    protocol: Protocol,
    predict: Predict,
    people: LabelledSet,
    template: BodyTemplate,
    *,
    rules: Sequence[str] = (),
    batch_size: int = 32,
    workers: int = 0,
    views: TestTimeViews = PLAIN,
    skip_bad: bool = False,
    count: int | None = None,
    keep: bool = False,
) -> dict[str, ProtocolResult]:
    """Predict every sample of a set and compare it by a protocol; returns a result per crop rule.

    Args:
        protocol: what is compared.
        predict: see training.networks.Network.
        people: the set, read once.
        template: of the network's body.
        rules: crop rules to cut the pictures by; empty for the one of the set's spec.
        batch_size: images a call of `predict`.
        workers: processes that read pictures.
        views: test-time augmentation.
        skip_bad: step over samples that raise BadSampleError and list them, instead of stopping.
        count: only the first samples, None for all.
        keep: keep the predicted meshes and their joints.

    Raises:
        UserError: a network of another body; a bad sample; fewer samples than `count`; no usable sample; no labelled
            one for a metric that the protocol defines.
    """
    protocol.check(people.spec)
    rules = list(rules) or [people.spec.crop_rule]
    items = _EvaluationItems(people, rules, views, skip_bad, count)
    group = max(batch_size // len(views.pairs), 1)
    loader = PlainLoader(items, _collate, batch_size=group, num_workers=workers)
    runs = [_Run(protocol, template, keep) for _ in rules]
    skipped: list[str] = []
    with tqdm(total=len(items), desc=protocol.name, unit="picture", leave=False) as bar:
        for batch in loader:
            skipped += batch["skipped"]
            bar.update(len(batch["skipped"]) + len(batch.get("key", ())))
            if "image" in batch:
                truth = Truth.of_batch(batch)
                for i, run in enumerate(runs):
                    images = batch["image"][:, i].numpy()
                    run.add(_predicted(images, predict, template, protocol.joint_set, views, batch_size), truth)
    if not runs[0].samples:
        why = f"; the first: {skipped[0]}" if skipped else ""
        raise UserError(f"there is no usable sample to evaluate on: {len(skipped)} were bad{why}")
    results = {rule: run.result(skipped) for rule, run in zip(rules, runs, strict=True)}
    for result in results.values():
        result.dropped, result.left_out = people.dropped, dict(people.left_out)
    return results


class _Run:
    """What one crop rule has gathered so far."""

    def __init__(self, protocol: Protocol, template: BodyTemplate, keep: bool) -> None:
        self.protocol, self.template, self.keep, self.samples = protocol, template, keep, 0
        self.parts: list[dict[str, NDArray[np.float64]]] = []
        self.meshes: list[Floats] = []

    def add(self, predicted: Floats, truth: Truth) -> None:
        self.samples += len(predicted)
        self.parts.append(self.protocol.errors(predicted, truth, self.template))
        if self.keep:
            root = self.template.root(self.protocol.joint_set, predicted)
            self.meshes.append(np.asarray(predicted - root[:, None], np.float32))

    def result(self, skipped: list[str]) -> ProtocolResult:
        protocol = self.protocol
        errors = {name: np.concatenate([part[name] for part in self.parts]) for name in protocol.metrics}
        if bare := [TITLES[k] for k, v in errors.items() if not len(v) and k not in protocol.undefined]:
            raise UserError(f"no sample of the set has the labels for {', '.join(bare)} of protocol {protocol.name}")
        result = ProtocolResult(protocol, errors, self.samples, skipped)
        if self.keep:
            result.vertices = np.concatenate(self.meshes)
            result.joints = np.asarray(self.template.joints(protocol.joint_set, result.vertices), np.float32)
        return result


def _predicted(
    images: Floats, predict: Predict, template: BodyTemplate, joint_set: str, views: TestTimeViews, batch_size: int
) -> Floats:
    """Return the meshes (N, V, 3) of the views (N, K, 3, S, S) of N pictures."""
    flat = images.reshape(-1, *images.shape[2:])
    parts = [np.asarray(predict(flat[i : i + batch_size]), np.float32) for i in range(0, len(flat), batch_size)]
    meshes = np.concatenate(parts)
    if views == PLAIN:
        return meshes
    roots = template.root(joint_set, meshes)
    per_picture = zip(meshes.reshape(*images.shape[:2], -1, 3), roots.reshape(*images.shape[:2], 3), strict=True)
    return np.stack([views.fused(of_views, root) for of_views, root in per_picture])


def moved_mm(first: ProtocolResult, second: ProtocolResult) -> float:
    """Return the mean distance in mm between the root-centred meshes that two results kept of the same samples."""
    return mean_mm(mpvpe(first.vertices, second.vertices))


def protocol_report(rows: dict[str, ProtocolResult], **facts: Any) -> dict[str, Any]:
    """Return what JSON keeps: the protocol, `facts`, and a row per crop rule; all rows are of one protocol."""
    first = next(iter(rows.values()))
    return {
        "protocol": {
            **dataclasses.asdict(first.protocol),
            "metrics": list(first.protocol.metrics),
            "text": first.protocol.lines(),
        },
        **facts,
        "opening": {"bad": list(first.dropped), "left_out": first.left_out},
        "rows": [
            {
                "crop_rule": rule,
                "samples": result.samples,
                "labelled": {name: len(values) for name, values in result.errors.items()},
                "errors": {k: None if v is None else round(v, 4) for k, v in result.means().items()},
                "skipped": result.skipped,
            }
            for rule, result in rows.items()
        ],
    }


def protocol_table(report: dict[str, Any]) -> str:
    """Return the protocol and the Markdown table of a report, for people."""
    protocol, rows = report["protocol"], report["rows"]
    metrics, moved = list(protocol["metrics"]), any("moved_mm" in row for row in rows)
    titles = ["crop rule", "samples", *(TITLES[name] for name in metrics), *(["moved mm"] if moved else [])]
    lines = [*protocol["text"], *(f"crop rule {row['crop_rule']}: {CROP_RULE_WORDS[row['crop_rule']]}" for row in rows)]
    lines += [*(f"{key}: {value}" for key, value in report.get("run", {}).items()), ""]
    lines += ["| " + " | ".join(titles) + " |", "| " + " | ".join("---" for _ in titles) + " |"]
    for row in rows:
        cells = [_cell(name, row["errors"][name]) for name in metrics]
        cells += [f"{row['moved_mm']:.2f}"] if "moved_mm" in row else ["0"] if moved else []
        lines.append("| " + " | ".join([row["crop_rule"], str(row["samples"]), *cells]) + " |")
    lines += [f"{row['crop_rule']}: {len(row['skipped'])} bad samples left out" for row in rows if row["skipped"]]
    return "\n".join([*lines, *_opening_lines(report["opening"])])


def _opening_lines(opening: dict[str, Any]) -> list[str]:
    bad, left_out = opening["bad"], {why: count for why, count in opening["left_out"].items() if count}
    lines = [f"labels: {len(bad)} bad rows or files left out, the first: {bad[0]}"] if bad else []
    if left_out:
        counts = ", ".join(f"{count} ({why})" for why, count in left_out.items())
        lines.append(f"labels: rows that the data set's rules leave out: {counts}")
    return lines


def _cell(metric: str, value: float | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.3f}" if metric.startswith("f_") else f"{value:.2f}"
