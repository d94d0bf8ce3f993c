"""How much depends on the crop: the same samples cut by other rules, from a detector's boxes, from the whole frame."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.accuracy import BATCH, BatchTruth, batch_of, check_prediction
from benchmarks.bootstrap import interval
from metro_edge.backends import Session
from metro_edge.spec import CROP_RULES, ModelSpec
from metro_edge.template import BodyTemplate
from training.protocols import Protocol

if TYPE_CHECKING:
    from training.data.labelled import LabelledPicture, LabelledSet

SAMPLES = 200
SEED = 0  # of the detected boxes
TRUE, DETECTED, WHOLE = "true", "detected", "whole_frame"
SHIFT, GROWTH = 0.03, 0.05  # standard deviations of the boxes' middles and sides, in sides
PROTOCOL = (
    "MPJPE of the first samples, cut anew from their frames; detected: the true square's middle moved by "
    f"{SHIFT:.0%} of the box along x and y and its side changed by {GROWTH:.0%}, standard deviations drawn per sample; "
    "whole_frame: what the estimator takes without a box. Changes are paired per sample, against the first crop and "
    "against FP32 on the same crop"
)
Errors = dict[str, dict[str, NDArray[np.float64]]]  # precision -> crop -> MPJPE (N,) mm


@dataclass(frozen=True)
class Crop:
    """One way to cut the samples: by which rule, and from which box (TRUE, DETECTED or WHOLE)."""

    rule: str
    box: str

    @property
    def name(self) -> str:
        """Its key in a result."""
        return f"{self.rule}/{self.box}"

    def of(self, picture: LabelledPicture, spec: ModelSpec, draw: NDArray[np.float64]) -> LabelledPicture:
        """Return `picture` with the square that the box gives; `draw` (3,) are standard normal numbers."""
        if self.box == DETECTED:
            shift_px = SHIFT * draw[:2] * picture.side_px / spec.box_scale
            side_px = picture.side_px * max(1.0 + GROWTH * float(draw[2]), 0.5)
            return dataclasses.replace(picture, centre_px=picture.centre_px + shift_px, side_px=side_px)
        if self.box == WHOLE:
            height, width = picture.image.shape[:2]
            centre_px = np.array([width - 1, height - 1]) / 2.0
            return dataclasses.replace(picture, centre_px=centre_px, side_px=max(width, height) * spec.box_scale)
        return picture


def crops_for(spec: ModelSpec, one_person: bool) -> list[Crop]:
    """Return what is measured, the network's own rule from the true box first; whole frames of one person each."""
    rules = [spec.crop_rule, *(rule for rule in CROP_RULES if rule != spec.crop_rule)]
    boxes = [DETECTED, WHOLE] if one_person else [DETECTED]
    return [*(Crop(rule, TRUE) for rule in rules), *(Crop(spec.crop_rule, box) for box in boxes)]


def measure_crops(
    sessions: Mapping[str, Session],
    frames: LabelledSet,
    samples: int,
    crops: list[Crop],
    template: BodyTemplate,
    rules: Protocol | None = None,
    seed: int = SEED,
) -> Errors:
    """Return the MPJPE in mm of every precision, crop and sample.

    Args:
        sessions: precision -> network ready to run.
        frames: whole frames with truth.
        samples: how many of them, the first ones.
        crops: of `crops_for`.
        template: of the body.
        rules: protocol of the data; None compares with the true meshes.
        seed: of the detected boxes.

    Raises:
        UserError: a prediction or truth that is not finite, or a sample without the labels that are needed.
    """
    found: dict[str, dict[str, list[NDArray[np.float64]]]] = {
        precision: {crop.name: [] for crop in crops} for precision in sessions
    }
    for start, pictures in _pictures(frames, samples):
        draws = [np.random.default_rng([seed, start + k]).standard_normal(3) for k in range(len(pictures))]
        for crop in crops:
            batch = _cut(pictures, crop, frames.spec, draws)
            truth = BatchTruth(start, batch, frames.spec, template, rules)
            for precision, session in sessions.items():
                outputs = session.infer(batch["image"])
                check_prediction(outputs, start, f"{precision} ({crop.name})")
                found[precision][crop.name].append(truth.errors(outputs.mesh).mpjpe * 1000.0)
    return {p: {name: np.concatenate(parts) for name, parts in of.items()} for p, of in found.items()}


def crops_entry(errors: Errors, precision: str, reference: str | None) -> dict[str, Any]:
    """Return what a result keeps of one precision; see benchmarks.report for the keys."""
    ours = errors[precision]
    base = next(iter(ours.values()))
    against = errors[reference] if reference is not None and reference != precision else None
    table = {}
    for number, (name, values) in enumerate(ours.items()):
        table[name] = {
            **_named("mpjpe", values),
            **_named("change", values - base if number else None),
            **_named("against_fp32", None if against is None else values - against[name]),
        }
    return table


def _named(name: str, values: NDArray[np.float64] | None) -> dict[str, Any]:
    found = None if values is None else interval(values)
    mean = None if values is None else float(values.mean())
    return {f"{name}_mm": mean, f"{name}_interval": found and found.to_dict()}


def _pictures(frames: LabelledSet, samples: int) -> Iterator[tuple[int, list[LabelledPicture]]]:
    from training.data.labelled import check_picture

    with tqdm(total=samples, desc="crops", unit="sample", leave=False) as bar:
        for start in range(0, samples, BATCH):
            numbers = range(start, min(start + BATCH, samples))
            yield start, [check_picture(frames.picture(k), frames.spec) for k in numbers]
            bar.update(len(numbers))


def _cut(
    pictures: list[LabelledPicture], crop: Crop, spec: ModelSpec, draws: list[NDArray[np.float64]]
) -> dict[str, NDArray[np.float32]]:
    from training.data.labelled import make_item

    cut_by = dataclasses.replace(spec, crop_rule=crop.rule)
    moved = [crop.of(picture, spec, draw) for picture, draw in zip(pictures, draws, strict=True)]
    return batch_of([make_item(picture, cut_by) for picture in moved])
