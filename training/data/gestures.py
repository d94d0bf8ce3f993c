"""What arms and hands do in made poses: wrist targets of everyday gestures, relaxed arms, free ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.data.poser import Poser, toward
from training.data.rig import Array

Rng = Any  # numpy.random.Generator


def uniform(rng: Rng, low: float, high: float) -> float:
    """Return a number drawn uniformly from low to high."""
    return float(rng.uniform(low, high))


# Wrist targets relative to the shoulder in arm lengths as (outwards, front, up), their spread, and where the elbow
# points; relaxed arms and free ones are given as directions instead.
_ARM_TARGETS: dict[str, tuple[tuple[float, float, float], float, tuple[float, float, float]]] = {
    "akimbo": ((0.08, 0.10, -0.70), 0.05, (1.0, -0.5, -0.1)),
    "crossed": ((-0.45, 0.42, -0.42), 0.05, (0.6, 0.3, -1.0)),
    "ear": ((-0.10, 0.22, 0.38), 0.06, (0.8, 0.5, -0.8)),
    "face": ((-0.25, 0.40, 0.20), 0.08, (0.4, 0.5, -1.0)),
    "hold": ((-0.15, 0.62, -0.30), 0.16, (0.5, -0.2, -1.0)),
    "carry": ((0.00, 0.50, -0.55), 0.12, (0.4, -0.8, -0.6)),
    "behind": ((-0.20, -0.22, -0.72), 0.05, (1.0, -0.6, 0.0)),
    "pocket": ((0.12, 0.10, -0.82), 0.04, (0.7, -0.8, 0.0)),
    "wave": ((0.45, 0.25, 0.45), 0.14, (1.0, 0.0, -0.6)),
    "overhead": ((0.05, 0.20, 0.90), 0.18, (1.0, 0.4, 0.2)),
    "back_of_head": ((-0.10, -0.05, 0.48), 0.05, (1.0, 0.3, 0.3)),
    "lap": ((-0.10, 0.55, -0.65), 0.12, (0.8, -0.5, -0.2)),
    "front": ((-0.05, 0.90, 0.00), 0.22, (0.4, 0.0, -1.0)),
    "guard": ((-0.08, 0.42, 0.02), 0.10, (0.5, 0.1, -1.0)),
    "support": ((0.20, -0.45, -0.80), 0.10, (0.3, -1.0, 0.2)),
}
STANDING_ARMS = {
    "relaxed": 0.40, "akimbo": 0.07, "crossed": 0.0, "ear": 0.04, "face": 0.05, "hold": 0.12, "carry": 0.06,
    "behind": 0.03, "pocket": 0.05, "wave": 0.05, "overhead": 0.05, "back_of_head": 0.02, "front": 0.04,
    "point": 0.05, "spread": 0.04, "free": 0.08, "guard": 0.03,
}  # fmt: skip
SITTING_ARMS = {
    "lap": 0.45, "hold": 0.18, "face": 0.08, "ear": 0.04, "relaxed": 0.10, "front": 0.08, "free": 0.06, "overhead": 0.02
}  # fmt: skip
SPORT_ARMS = {
    "free": 0.34, "spread": 0.14, "guard": 0.16, "overhead": 0.12, "front": 0.12, "wave": 0.06, "hold": 0.06,
}  # fmt: skip


def set_arm(p: Poser, rng: Rng, side: str, mode: str, noise: Array | None = None) -> None:
    """Set one arm; `noise` (3,) lets both arms share their variation."""
    if noise is None:
        noise = rng.normal(0, 1, 3)
    if mode in _ARM_TARGETS:
        centre, spread, pole = _ARM_TARGETS[mode]
        target = np.array(centre) + spread * noise
        pole_varied = np.array(pole) + rng.normal(0, 0.2, 3)
        p.arm_to(side, toward(side, *target), toward(side, *pole_varied))
    elif mode == "relaxed":
        direction = np.array([0.20, 0.02, -1.0]) + noise * np.array([0.10, 0.16, 0.0])
        direction[0] = max(direction[0], 0.08)
        p.arm(side, toward(side, *direction), toward(side, 0.5, -1, 0), 8 + 24 * abs(rng.normal(0, 0.6)))
    elif mode == "point":
        direction = (uniform(rng, -0.3, 1.0), uniform(rng, 0.0, 1.0), uniform(rng, -0.3, 0.7))
        p.arm(side, toward(side, *direction), toward(side, 0.6, -0.4, -0.7), uniform(rng, 0, 25))
    elif mode == "spread":
        direction = np.array([1.0, 0.1, 0.0]) + noise * (0.1, 0.25, 0.35)
        p.arm(side, toward(side, *direction), toward(side, 0.0, -0.6, -0.8), 45 * abs(rng.normal(0, 0.7)))
    else:  # free: anywhere an arm goes, bent by any amount
        while True:
            direction = rng.normal(0, 1, 3) + np.array([0.7, 0.5, -0.2])
            length = np.linalg.norm(direction)
            out, front, up = direction / length
            if out > -0.45 and front > -0.75 and not (out < 0 and front < 0.2):
                break
        pole = np.array([0.6, -0.6, -0.8]) + rng.normal(0, 0.5, 3)
        p.arm(side, toward(side, out, front, up), toward(side, *pole), uniform(rng, 0, 130))
    vary_hand(p, rng, side, mode)


def vary_hand(p: Poser, rng: Rng, side: str, mode: str) -> None:
    """Curl, turn and bend a hand as the gesture asks, varied."""
    curl: float = {"hold": 45, "guard": 60, "carry": 55, "point": 30, "pocket": 35}.get(mode, 18)
    if rng.random() < 0.15:
        curl = uniform(rng, 0, 80)
    p.hand(side, curl + rng.normal(0, 10), rng.normal(10, 30), rng.normal(0, 14), rng)


def set_arms(p: Poser, rng: Rng, table: dict[str, float]) -> None:
    """Set both arms, often alike, to gestures drawn by the weights of `table`."""
    modes, weights = list(table), np.array(list(table.values()))
    weights = weights / weights.sum()
    left, right = rng.choice(modes, 2, p=weights)
    noise = rng.normal(0, 1, 3)
    if rng.random() < 0.55:  # both the same, and much alike
        right = left
        set_arm(p, rng, "L", left, noise)
        set_arm(p, rng, "R", right, noise + rng.normal(0, 0.5, 3))
    else:
        set_arm(p, rng, "L", left)
        set_arm(p, rng, "R", right)


def cross_arms(p: Poser, rng: Rng) -> None:
    """Fold the arms before the chest."""
    for side, front in (("L", 0.12), ("R", -0.02)):
        centre, _, pole = _ARM_TARGETS["crossed"]
        target = np.array(centre) + np.array([0, front, -front]) + rng.normal(0, 0.02, 3)
        p.arm_to(side, toward(side, *target), toward(side, *pole))
        p.hand(side, 35, 20, 0, rng)
