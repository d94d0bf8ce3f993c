"""What quantisation does to people who move: acceleration error and jitter on generated walkers, unsmoothed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.bootstrap import interval
from metro_edge.backends import Session
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.files import replacing
from metro_edge.metrics import acceleration_error_mm, jitter_mm

if TYPE_CHECKING:
    from training.data.scenes import SceneFrame

FPS = 25.0
LEAST_FRAMES = 10  # of a walk in one piece
FIGURES = ("acceleration_error", "jitter")
SCENES_FOLDER = Path("runs") / "scenes"
JOINT_SET = "h36m14"  # of the scenes' truth
PROTOCOL = (
    "the network's own joints from their root, frame by frame from the true boxes, unsmoothed; acceleration error: "
    "mean norm of the second difference of predicted less true joints, mm per frame^2; jitter: mean norm of the third "
    "difference of the predicted joints, mm per frame^3; a gain is the share by which a figure is above FP32's, on the "
    "same frames; intervals by drawing whole walks"
)
Floats = NDArray[np.float64]
Row = TypeVar("Row")


@dataclass(frozen=True, eq=False)
class Walk:
    """One person in frames in a row.

    Attributes:
        truth: (F, J, 3) metres, from the root.
        predicted: precision -> the same.
    """

    truth: Floats
    predicted: dict[str, Floats]


def scenes(folder: Path = SCENES_FOLDER, alone: bool = False) -> dict[str, list[SceneFrame]]:
    """Return the frames of training.data.scenes by scene, rendered once into `folder`: of several people, or of one."""
    from training.data.scenes import ALONE, SCENES, SceneFrame, render_scene

    folder.mkdir(parents=True, exist_ok=True)
    result = {}
    for name, walkers in tqdm((ALONE if alone else SCENES).items(), desc="scenes", unit="scene", leave=False):
        path = folder / f"{name}.npz"
        if not path.exists():
            rendered = render_scene(walkers, round(FPS * max(walker.to_s for walker in walkers)))
            arrays = {f"{field.name}{k}": getattr(f, field.name) for k, f in enumerate(rendered)
                      for field in dataclasses.fields(SceneFrame)}  # fmt: skip
            with replacing(path) as partial:
                np.savez_compressed(partial, **arrays)
        with np.load(path, allow_pickle=False) as file:
            names = [field.name for field in dataclasses.fields(SceneFrame)]
            result[name] = [SceneFrame(*(file[f"{n}{k}"] for n in names)) for k in range(len(file.files) // len(names))]
    return result


def unbroken(rows: Sequence[tuple[int, Row]], least: int = LEAST_FRAMES) -> list[list[tuple[int, Row]]]:
    """Return the parts of rows (frame number, anything) without a gap in the numbers, at least `least` long."""
    parts: list[list[tuple[int, Row]]] = []
    for row in rows:
        if parts and row[0] == parts[-1][-1][0] + 1:
            parts[-1].append(row)
        else:
            parts.append([row])
    return [part for part in parts if len(part) >= least]


def find_walks(
    sessions: Mapping[str, Session], bundle: Bundle, clips: Mapping[str, Sequence[SceneFrame]]
) -> tuple[list[Walk], int]:
    """Run every precision over the people of all frames; returns their walks and how many people were not found.

    A person in a frame counts when every precision has found somebody in the true box.

    Raises:
        UserError: a network of other joints than the scenes', or no walk of LEAST_FRAMES frames.
    """
    if bundle.spec.joint_set != JOINT_SET:
        raise UserError(
            f"the walkers have joints {JOINT_SET}, the network {bundle.spec.joint_set}: --no-motion leaves this out"
        )
    root_of = bundle.spec.joints.root_of
    estimators = {name: MeshEstimator(bundle, session) for name, session in sessions.items()}
    rows: dict[tuple[str, int], list[tuple[int, dict[str, Any]]]] = {}
    missed = 0
    with tqdm(total=sum(map(len, clips.values())), desc="motion", unit="frame", leave=False) as bar:
        for scene, frames in clips.items():
            for number, frame in enumerate(frames):
                found = {name: one.found(frame.image, frame.boxes) for name, one in estimators.items()}
                for person, identity in enumerate(frame.identities):
                    bodies = {name: of[person] for name, of in found.items()}
                    if any(body is None for body in bodies.values()):
                        missed += 1
                        continue
                    points = {name: body.joints for name, body in bodies.items() if body is not None}
                    walk = rows.setdefault((scene, int(identity)), [])
                    walk.append((number, {**points, "": frame.joints[person]}))
                bar.update()
    walks = []
    for walk in rows.values():
        for part in unbroken(walk):
            arrays = {name: np.array([row[name] for _, row in part], np.float64) for name in part[0][1]}
            centred = {name: points - root_of(points)[:, None] for name, points in arrays.items()}
            walks.append(Walk(centred.pop(""), centred))
    if not walks:
        raise UserError(f"nobody was found in {LEAST_FRAMES} frames in a row: --no-motion leaves this out")
    return walks, missed


def motion_entry(walks: Sequence[Walk], precision: str, reference: str | None) -> dict[str, Any]:
    """Return what a result keeps of one precision; see benchmarks.report for the keys."""
    entry: dict[str, Any] = {}
    for figure in FIGURES:
        ours = _sums(walks, figure, precision)
        entry |= _named(f"{figure}_mm", f"{figure}_interval", ours)
        gain = None
        if reference is not None and precision != reference:
            theirs = _sums(walks, figure, reference)
            # A reference that stands still in a whole walk leaves nothing to divide by.
            gain = np.column_stack((ours[:, 0], theirs[:, 0])) if (theirs[:, 0] > 0).all() else None
        entry |= _named(f"{figure}_gain", f"{figure}_gain_interval", gain, less=1.0)
    return entry


def motion_facts(walks: Sequence[Walk], missed: int) -> dict[str, Any]:
    """Return how the motion was measured; see benchmarks.report for the keys."""
    true = _sums([Walk(walk.truth, {"": walk.truth}) for walk in walks], "jitter", "")
    return {
        "data": "generated walkers of training/data/scenes.py",
        "walks": len(walks),
        "frames": sum(len(walk.truth) for walk in walks),
        "missed": missed,
        "fps": FPS,
        "true_jitter_mm": float(_ratio(true[None])[0]),
        "protocol": PROTOCOL,
    }


def _sums(walks: Sequence[Walk], figure: str, precision: str) -> Floats:
    """Return (walks, 2): the sum of a figure over a walk's differences, and their number."""
    rows = []
    for walk in walks:
        points = walk.predicted[precision]
        if figure == "jitter":
            value, count = jitter_mm(points), len(points) - 3
        else:
            value, count = acceleration_error_mm(points, walk.truth), len(points) - 2
        rows.append((value * count, count))
    return np.array(rows, np.float64)


def _ratio(sums: Floats) -> Floats:
    """Return the first sum over the second, of sums (R, walks, 2) -> (R,)."""
    totals = sums.sum(axis=1)
    ratio: Floats = totals[:, 0] / totals[:, 1]
    return ratio


def _named(value_key: str, interval_key: str, sums: Floats | None, less: float = 0.0) -> dict[str, Any]:
    if sums is None:
        return {value_key: None, interval_key: None}
    found = interval(sums, lambda drawn: _ratio(drawn) - less)
    return {value_key: float(_ratio(sums[None])[0]) - less, interval_key: found and found.to_dict()}
