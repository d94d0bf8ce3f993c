"""Whether the limbs of a pose go through the body, from capsules about the bones."""

from __future__ import annotations

import numpy as np

from training.data.rig import Array, Rig


def penetration_m(rig: Rig, pose: Array) -> float:
    """Return how deep in metres limbs stand in the torso, the head or each other, from capsules about bones."""
    heads, turns = rig.forward(pose)
    at = {name: heads[i] for name, i in rig.index.items()}
    chest_axis = turns[rig.index["spine02"]]
    depth = 0.0
    segments = {}
    for side in "LR":
        elbow, wrist = at[f"lowerarm01.{side}"], at[f"wrist.{side}"]
        knuckle = at[f"finger3-2.{side}"]
        knee, ankle = at[f"lowerleg01.{side}"], at[f"foot.{side}"]
        segments[side] = (elbow, wrist, knee, ankle)
        for point, radius in ((elbow, 0.045), (wrist, 0.03), (knuckle, 0.02), (knee, 0.06), (ankle, 0.05)):
            depth = max(depth, _in_torso(at, chest_axis, point, radius))
        head = at["head"] + turns[rig.index["head"]] @ np.array([0, -0.03, 0.08])
        for point, radius in ((wrist, 0.03), (knuckle, 0.01), (elbow, 0.04), (knee, 0.06)):
            depth = max(depth, 0.10 + radius - float(np.linalg.norm(point - head)))
        for leg in "LR":
            hip = at[f"upperleg01.{leg}"]
            middle = at[f"lowerleg01.{leg}"]
            for point in (wrist, knuckle):
                depth = max(depth, 0.085 - _distance(point, hip + 0.2 * (middle - hip), middle))
                depth = max(depth, 0.065 - _distance(point, middle, at[f"foot.{leg}"]))
    (_, left_wrist, left_knee, left_ankle), (_, right_wrist, right_knee, right_ankle) = segments["L"], segments["R"]
    for point, a, b in (
        (left_knee, right_knee, right_ankle),
        (right_knee, left_knee, left_ankle),
        (left_ankle, right_knee, right_ankle),
        (right_ankle, left_knee, left_ankle),
    ):
        depth = max(depth, 0.105 - _distance(point, a, b))
    thighs = _distance((left_knee + at["upperleg01.L"]) / 2, (right_knee + at["upperleg01.R"]) / 2, right_knee)
    depth = max(depth, 0.12 - thighs)
    for point, side in ((left_wrist, "R"), (right_wrist, "L")):
        depth = max(depth, 0.06 - _distance(point, at[f"lowerarm01.{side}"], at[f"wrist.{side}"]))
    return depth


def _in_torso(at: dict[str, Array], axes: Array, point: Array, radius: float) -> float:
    """Depth of a ball in the torso: a tube about the spine, wider from side to side than from front to back."""
    low, high = at["spine05"] - (0, 0, 0.02), at["neck01"]
    line = high - low
    share = float(np.clip((point - low) @ line / (line @ line), 0, 1))
    offset = axes.T @ (point - (low + share * line))
    scaled = np.linalg.norm(offset / (0.165, 0.115, 0.115))
    return float((1 - scaled) * 0.125 + radius) if scaled < 2.5 else 0.0


def _distance(point: Array, a: Array, b: Array) -> float:
    line = b - a
    share = float(np.clip((point - a) @ line / max(float(line @ line), 1e-9), 0, 1))
    return float(np.linalg.norm(point - a - share * line))
