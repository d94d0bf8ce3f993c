"""A seeded sampler of human poses for the Anny rig: families of everyday and sports poses, varied within joint limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from metro_edge.errors import UserError
from training.data.poser import Poser, toward
from training.data.rig import Array, Rig

Rng = Any  # numpy.random.Generator
_TRIES = 12


def _u(rng: Rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


# --- arms -----------------------------------------------------------------------------------------------------
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
_STANDING_ARMS = {
    "relaxed": 0.40, "akimbo": 0.07, "crossed": 0.0, "ear": 0.04, "face": 0.05, "hold": 0.12, "carry": 0.06,
    "behind": 0.03, "pocket": 0.05, "wave": 0.05, "overhead": 0.05, "back_of_head": 0.02, "front": 0.04,
    "point": 0.05, "spread": 0.04, "free": 0.08, "guard": 0.03,
}  # fmt: skip
_SITTING_ARMS = {
    "lap": 0.45, "hold": 0.18, "face": 0.08, "ear": 0.04, "relaxed": 0.10, "front": 0.08, "free": 0.06, "overhead": 0.02
}  # fmt: skip
_SPORT_ARMS = {
    "free": 0.34, "spread": 0.14, "guard": 0.16, "overhead": 0.12, "front": 0.12, "wave": 0.06, "hold": 0.06,
}  # fmt: skip


def _arm(p: Poser, rng: Rng, side: str, mode: str, noise: Array | None = None) -> None:
    """Set one arm; `noise` (3,) lets both arms share their variation."""
    if noise is None:
        noise = rng.normal(0, 1, 3)
    if mode in _ARM_TARGETS:
        centre, spread, pole = _ARM_TARGETS[mode]
        target = np.array(centre) + spread * noise
        pole_varied = np.array(pole) + rng.normal(0, 0.2, 3)
        p.arm_to(side, toward(side, *target), toward(side, *pole_varied))
    elif mode == "relaxed":
        direction = np.array([0.20, 0.02, -1.0]) + noise * (0.10, 0.16, 0.0)
        direction[0] = max(direction[0], 0.08)
        p.arm(side, toward(side, *direction), toward(side, 0.5, -1, 0), 8 + 24 * abs(rng.normal(0, 0.6)))
    elif mode == "point":
        direction = (_u(rng, -0.3, 1.0), _u(rng, 0.0, 1.0), _u(rng, -0.3, 0.7))
        p.arm(side, toward(side, *direction), toward(side, 0.6, -0.4, -0.7), _u(rng, 0, 25))
    elif mode == "spread":
        direction = np.array([1.0, 0.1, 0.0]) + noise * (0.1, 0.25, 0.35)
        p.arm(side, toward(side, *direction), toward(side, 0.0, -0.6, -0.8), 45 * abs(rng.normal(0, 0.7)))
    else:  # free: anywhere an arm goes, bent by any amount
        while True:
            direction = rng.normal(0, 1, 3) + (0.7, 0.5, -0.2)
            length = np.linalg.norm(direction)
            out, front, up = direction / length
            if out > -0.45 and front > -0.75 and not (out < 0 and front < 0.2):
                break
        pole = np.array([0.6, -0.6, -0.8]) + rng.normal(0, 0.5, 3)
        p.arm(side, toward(side, out, front, up), toward(side, *pole), _u(rng, 0, 130))
    _hand(p, rng, side, mode)


def _hand(p: Poser, rng: Rng, side: str, mode: str) -> None:
    curl = {"hold": 45, "guard": 60, "carry": 55, "point": 30, "pocket": 35}.get(mode, 18)
    if rng.random() < 0.15:
        curl = _u(rng, 0, 80)
    p.hand(side, curl + rng.normal(0, 10), rng.normal(10, 30), rng.normal(0, 14), rng)


def _arms(p: Poser, rng: Rng, table: dict[str, float]) -> None:
    modes, weights = list(table), np.array(list(table.values()))
    weights = weights / weights.sum()
    left, right = rng.choice(modes, 2, p=weights)
    noise = rng.normal(0, 1, 3)
    if rng.random() < 0.55:  # both the same, and much alike
        right = left
        _arm(p, rng, "L", left, noise)
        _arm(p, rng, "R", right, noise + rng.normal(0, 0.5, 3))
    else:
        _arm(p, rng, "L", left)
        _arm(p, rng, "R", right)


def _crossed_arms(p: Poser, rng: Rng) -> None:
    for side, front in (("L", 0.12), ("R", -0.02)):
        centre, _, pole = _ARM_TARGETS["crossed"]
        target = np.array(centre) + (0, front, -front) + rng.normal(0, 0.02, 3)
        p.arm_to(side, toward(side, *target), toward(side, *pole))
        p.hand(side, 35, 20, 0, rng)


def _head(p: Poser, rng: Rng, strength: float = 1.0) -> None:
    p.neck(rng.normal(4, 12) * strength, rng.normal(0, 7) * strength, rng.normal(0, 24) * strength)


def _upright(p: Poser, rng: Rng, lean: float = 4.0) -> None:
    p.root(rng.normal(0, lean), rng.normal(0, 3), 0)
    p.spine(rng.normal(3, 7), rng.normal(0, 5), rng.normal(0, 9))
    _head(p, rng)


# --- families -------------------------------------------------------------------------------------------------


def _stand(p: Poser, rng: Rng) -> None:
    _upright(p, rng)
    width, stagger = abs(rng.normal(0.05, 0.08)), rng.normal(0, 0.06)
    shift = rng.normal(0, 0.04)
    for side, sign in (("L", 1), ("R", -1)):
        up = -0.992 + abs(rng.normal(0, 0.012))
        p.leg_to(side, toward(side, width - sign * shift, sign * stagger, up), toward(side, _u(rng, 0.0, 0.5), 1, 0))
        p.plant(side, 0, _u(rng, -2, 18))
    if rng.random() < 0.25:  # weight on one leg, the other knee loose
        side, heel = rng.choice(["L", "R"]), max(0.0, rng.normal(5, 12))
        target = toward(side, width + 0.05, _u(rng, -0.15, 0.2), _u(rng, -0.96, -0.88))
        p.leg_to(side, target, toward(side, _u(rng, 0, 0.7), 1, 0))
        p.plant(side, heel, _u(rng, 0, 25))
    if rng.random() < 0.10:
        _crossed_arms(p, rng)
    else:
        _arms(p, rng, _STANDING_ARMS)


def _stride(p: Poser, rng: Rng, phase: float, speed: float) -> None:
    """A moment of walking (speed 0) to running (speed 1); `phase` in radians, the left thigh foremost at pi / 2."""
    swing = 22 + 28 * speed
    p.root(2 + 9 * speed + rng.normal(0, 2), 2 * np.cos(phase), 5 * np.sin(phase))
    p.spine(3 + 5 * speed + rng.normal(0, 3), -2 * np.cos(phase), -(8 + 12 * speed) * np.sin(phase))
    _head(p, rng, 0.6)
    for side, angle in (("L", phase), ("R", phase + np.pi)):
        thigh = np.radians(swing * np.sin(angle) + 6 + 10 * speed)
        lifted = max(0.0, np.cos(angle + 0.35))  # the leg that travels forwards
        bend = 6 + 10 * speed + (50 + 55 * speed) * lifted + (12 + 12 * speed) * max(0.0, np.sin(angle)) * (
            1 - lifted
        )
        direction = toward(side, 0.03 + 0.02 * rng.normal(), np.sin(thigh), -np.cos(thigh))
        p.leg(side, direction, toward(side, 0.06, np.cos(thigh), np.sin(thigh)), bend)
        p.foot(side, rng.normal(0, 5) + 12 * np.sin(angle) - (10 + 20 * speed) * max(0.0, -np.sin(angle)), 4)
        arm = np.radians(-(24 + 26 * speed) * np.sin(angle) - 4)
        direction = toward(side, 0.16 + 0.06 * speed, np.sin(arm), -np.cos(arm))
        p.arm(side, direction, toward(side, 0.35, -1, -0.2), 14 + 72 * speed + 12 * np.sin(-angle) + rng.normal(0, 6))
        p.hand(side, 25 + 35 * speed + rng.normal(0, 8), 10, rng.normal(0, 8), rng)


def _walk(p: Poser, rng: Rng) -> None:
    _stride(p, rng, _u(rng, 0, 2 * np.pi), _u(rng, 0.0, 0.35))
    if rng.random() < 0.35:
        side = rng.choice(["L", "R"])
        _arm(p, rng, side, rng.choice(["hold", "carry", "ear", "pocket", "wave", "face", "point"]))


def _run(p: Poser, rng: Rng) -> None:
    _stride(p, rng, _u(rng, 0, 2 * np.pi), _u(rng, 0.6, 1.25))
    if rng.random() < 0.35:
        _arm(p, rng, rng.choice(["L", "R"]), rng.choice(["free", "front", "spread", "overhead"]))


def _sit_chair(p: Poser, rng: Rng) -> None:
    p.root(rng.normal(-6, 9), rng.normal(0, 2), 0)
    p.spine(rng.normal(14, 14), rng.normal(0, 6), rng.normal(0, 12))
    _head(p, rng)
    spread, knee = abs(rng.normal(0.15, 0.15)), _u(rng, 65, 115)
    for side in "LR":
        direction = toward(side, spread + rng.normal(0, 0.05), 1.0, rng.normal(-0.05, 0.15))
        p.leg(side, p.pose[0].T @ direction, toward(side, 0.15 * rng.normal(), 0.3, 1), knee + rng.normal(0, 10))
        p.plant(side, max(0.0, rng.normal(0, 12)), _u(rng, -5, 15))
    if rng.random() < 0.2:  # one leg over the other
        side = rng.choice(["L", "R"])
        p.leg(side, toward(side, -0.22, 1.0, 0.30), toward(side, 0.1, 0.3, 1), _u(rng, 75, 105))
        p.foot(side, -15)
    _arms(p, rng, _SITTING_ARMS)


def _sit_floor(p: Poser, rng: Rng) -> None:
    p.root(rng.normal(-12, 10), 0, 0)
    p.spine(rng.normal(18, 14), rng.normal(0, 5), rng.normal(0, 10))
    _head(p, rng)
    mode = rng.choice(["crossed", "long", "knees_up", "mixed"])
    for side in "LR":
        kind = rng.choice(["long", "knees_up", "crossed"]) if mode == "mixed" else mode
        if kind == "crossed":
            front = 0.12 if side == "L" else 0.0
            p.leg(side, toward(side, 0.85, 0.9, 0.05 + front), toward(side, 1.0, 0.6, 0.7), _u(rng, 118, 140))
            p.foot(side, -20)
        elif kind == "long":
            p.leg(side, toward(side, _u(rng, 0.0, 0.4), 1.0, _u(rng, -0.05, 0.2)), toward(side, 0.2, 0, 1), _u(rng, 0, 40))
            p.foot(side, _u(rng, -25, 10))
        else:
            p.leg(side, toward(side, _u(rng, 0.0, 0.45), 1.0, _u(rng, 0.6, 1.6)), toward(side, 0, 1, 1), _u(rng, 95, 140))
            p.plant(side)
    if rng.random() < 0.25:
        _arm(p, rng, "L", "support")
        _arm(p, rng, "R", rng.choice(["support", "lap"]))
    else:
        _arms(p, rng, _SITTING_ARMS)


def _crouch(p: Poser, rng: Rng) -> None:
    depth = _u(rng, 0.0, 1.0)  # from a ready stance to a deep squat
    p.root(15 + 25 * depth + rng.normal(0, 9), rng.normal(0, 4), 0)
    p.spine(10 + rng.normal(5, 9), rng.normal(0, 5), rng.normal(0, 10))
    p.neck(-18 + rng.normal(0, 12), rng.normal(0, 5), rng.normal(0, 20))
    width, stagger = _u(rng, 0.05, 0.32), rng.normal(0, 0.14)
    for side, sign in (("L", 1), ("R", -1)):
        target = toward(side, width, sign * stagger + 0.06, -0.93 + 0.55 * depth + rng.normal(0, 0.02))
        p.leg_to(side, target, toward(side, 0.1 + 1.6 * width, 1, 0.1))
        p.plant(side, max(0.0, rng.normal(14 * depth, 10)), _u(rng, 0, 20))
    _arms(p, rng, {"guard": 0.2, "hold": 0.3, "spread": 0.15, "front": 0.2, "free": 0.15, "lap": 0.2})


def _kneel(p: Poser, rng: Rng) -> None:
    p.root(rng.normal(4, 8), rng.normal(0, 3), 0)
    p.spine(rng.normal(8, 12), rng.normal(0, 5), rng.normal(0, 10))
    _head(p, rng)
    down = rng.choice(["L", "R"])
    mode = rng.choice(["one", "both", "heels"])
    for side in "LR":
        out = _u(rng, 0.02, 0.22)
        if mode == "one" and side != down:
            p.leg(side, toward(side, out, 1, _u(rng, -0.25, 0.2)), toward(side, 0, 0.3, 1), _u(rng, 80, 110))
            p.plant(side)
        elif mode == "heels":
            p.leg(side, toward(side, out, 1, _u(rng, -0.4, 0.05)), toward(side, 0, 0.4, 1), _u(rng, 140, 150))
            p.foot(side, -45)
        else:
            p.leg(side, toward(side, out, _u(rng, -0.2, 0.3), -1), toward(side, 0, 1, 0), _u(rng, 80, 115))
            p.foot(side, _u(rng, -45, 0))
    _arms(p, rng, {**_STANDING_ARMS, "lap": 0.3, "front": 0.15})


def _reach_out(p: Poser, rng: Rng) -> None:
    _lunge_legs(p, rng)
    p.spine(rng.normal(10, 16), rng.normal(0, 12), rng.normal(0, 18))
    _head(p, rng)
    side, other = rng.permutation(["L", "R"])
    target = np.array([_u(rng, -0.4, 0.7), _u(rng, 0.2, 1.0), _u(rng, -0.9, 1.0)])
    target *= _u(rng, 0.75, 1.0) / np.linalg.norm(target)
    p.arm_to_world(side, toward(side, *target), toward(side, 0.7, -0.2, -0.6))
    p.hand(side, _u(rng, 5, 50), rng.normal(0, 30), rng.normal(0, 10), rng)
    if rng.random() < 0.4:
        p.arm_to_world(other, toward(other, -target[0] * 0.5, *target[1:]), toward(other, 0.7, -0.2, -0.6))
        _hand(p, rng, other, "hold")
    else:
        _arm(p, rng, other, rng.choice(["relaxed", "spread", "free", "akimbo"]))


def _lunge_legs(p: Poser, rng: Rng) -> None:
    """Feet apart in any direction, knees bent a little to much, feet on the ground; sets the root too."""
    p.root(rng.normal(6, 9), rng.normal(0, 6), rng.normal(0, 12))
    stride, width, low = _u(rng, -0.4, 0.4), _u(rng, 0.0, 0.3), _u(rng, 0.0, 0.22)
    for side, sign in (("L", 1), ("R", -1)):
        up = -np.sqrt(max(0.3, 0.985 - stride**2 - width**2)) + low
        p.leg_to(side, toward(side, width, sign * stride, up), toward(side, 0.25, 1, 0.0))
        p.plant(side, 28 * max(0.0, -sign * stride) / 0.4, _u(rng, 0, 20))


def _bend(p: Poser, rng: Rng) -> None:
    forward = _u(rng, 20, 80)
    p.root(forward, rng.normal(0, 5), 0)
    p.spine(_u(rng, 5, 45), rng.normal(0, 6), rng.normal(0, 12))
    p.neck(_u(rng, -35, 20), rng.normal(0, 6), rng.normal(0, 18))
    width = _u(rng, 0.02, 0.25)
    for side, sign in (("L", 1), ("R", -1)):
        p.leg_to(
            side,
            toward(side, width, 0.10 * forward / 80 + sign * rng.normal(0, 0.06), _u(rng, -0.97, -0.72)),
            toward(side, 0.2, 1, 0),
        )
        p.plant(side, 0, _u(rng, 0, 15))
        target = np.array([_u(rng, -0.15, 0.3), _u(rng, 0.0, 0.5), _u(rng, -0.98, -0.5)])
        p.arm_to_world(side, toward(side, *target), toward(side, 0.8, -0.4, 0.2))
        _hand(p, rng, side, "hold")
    if rng.random() < 0.3:
        _arm(p, rng, rng.choice(["L", "R"]), rng.choice(["akimbo", "spread", "free"]))


def _kick(p: Poser, rng: Rng) -> None:
    kicking, standing = rng.permutation(["L", "R"])
    sign = 1 if kicking == "L" else -1
    p.root(rng.normal(-4, 12), -sign * _u(rng, -4, 16), -sign * _u(rng, -10, 25))
    p.spine(rng.normal(10, 9), sign * rng.normal(4, 6), sign * rng.normal(10, 14))
    _head(p, rng, 0.8)
    target = toward(standing, rng.normal(0.0, 0.06), rng.normal(0.05, 0.1), _u(rng, -0.99, -0.88))
    p.leg_to(standing, target, toward(standing, 0.2, 1, 0))
    p.plant(standing, max(0.0, rng.normal(0, 12)), _u(rng, 0, 30))
    thigh, out = np.radians(_u(rng, -40, 80)), _u(rng, 0.0, 0.6)
    bend = _u(rng, 50, 105) if thigh < 0 else _u(rng, 0, 75)
    p.leg(
        kicking,
        toward(kicking, out, np.sin(thigh), -np.cos(thigh)),
        toward(kicking, 0.4, np.cos(thigh), np.sin(thigh)),
        bend,
    )
    p.foot(kicking, _u(rng, -40, 5), _u(rng, 0, 15))
    _arms(p, rng, {"spread": 0.4, "free": 0.4, "guard": 0.1, "relaxed": 0.1})


def _throw(p: Poser, rng: Rng) -> None:
    _lunge_legs(p, rng)
    side, other = rng.permutation(["L", "R"])
    sign = 1 if side == "L" else -1
    p.spine(rng.normal(4, 14), -sign * rng.normal(6, 8), sign * _u(rng, -35, 35))
    _head(p, rng, 0.8)
    target = np.array([_u(rng, 0.1, 0.7), _u(rng, -0.5, 0.7), _u(rng, 0.0, 0.9)])
    p.arm_to(side, toward(side, *target), toward(side, 1, -0.3, -0.3))
    p.hand(side, _u(rng, 15, 60), rng.normal(0, 20), rng.normal(0, 15), rng)
    _arm(p, rng, other, rng.choice(["spread", "free", "front", "guard", "relaxed"]))


def _jump(p: Poser, rng: Rng) -> None:
    p.root(rng.normal(5, 14), rng.normal(0, 9), 0)
    p.spine(rng.normal(2, 14), rng.normal(0, 8), rng.normal(0, 14))
    _head(p, rng)
    tucked, out = _u(rng, 0.0, 1.0), abs(rng.normal(0.1, 0.2))
    for side in "LR":
        thigh = np.radians(10 + 70 * tucked + rng.normal(0, 20))
        p.leg(
            side,
            toward(side, out + rng.normal(0, 0.08), np.sin(thigh), -np.cos(thigh)),
            toward(side, 0.3, np.cos(thigh), np.sin(thigh)),
            10 + 90 * tucked * rng.random() + abs(rng.normal(0, 25)),
        )
        p.foot(side, _u(rng, -40, 0))
    _arms(p, rng, {"overhead": 0.4, "spread": 0.3, "free": 0.3, "front": 0.1})


def _lie(p: Poser, rng: Rng) -> None:
    p.root(rng.choice([-90, -90, 90]) + rng.normal(0, 7), 0, 0)
    if rng.random() < 0.3:
        p.pose[0] = p.pose[0] @ Poser(p.rig).pose[0]
    p.spine(rng.normal(3, 9), rng.normal(0, 8), rng.normal(0, 9))
    _head(p, rng)
    for side in "LR":
        thigh = np.radians(max(-5.0, rng.normal(10, 22)))
        p.leg(
            side,
            toward(side, abs(rng.normal(0.1, 0.12)), np.sin(thigh), -np.cos(thigh)),
            toward(side, 0.3, np.cos(thigh), np.sin(thigh)),
            np.degrees(thigh) * _u(rng, 1.0, 1.8) + abs(rng.normal(0, 8)),
        )
        p.foot(side, _u(rng, -35, -5), _u(rng, 0, 20))
    _arms(p, rng, {"relaxed": 0.35, "overhead": 0.15, "back_of_head": 0.15, "spread": 0.15, "hold": 0.15, "free": 0.15})


def _sport(p: Poser, rng: Rng) -> None:
    _lunge_legs(p, rng)
    p.spine(rng.normal(12, 12), rng.normal(0, 9), rng.normal(0, 16))
    p.neck(rng.normal(-8, 12), rng.normal(0, 7), rng.normal(0, 25))
    _arms(p, rng, _SPORT_ARMS)


def _wild(p: Poser, rng: Rng) -> None:
    """Everything at random within the joints' limits: dancing, climbing, falling."""
    p.root(rng.normal(0, 22), rng.normal(0, 14), 0)
    p.spine(_u(rng, -20, 50), _u(rng, -25, 25), _u(rng, -35, 35))
    p.neck(_u(rng, -35, 35), _u(rng, -20, 20), _u(rng, -55, 55))
    for side in "LR":
        thigh = np.radians(_u(rng, -25, 100))
        out = _u(rng, -0.1, 0.8)
        p.leg(
            side,
            toward(side, out, np.sin(thigh), -np.cos(thigh)),
            toward(side, _u(rng, -0.2, 0.9), np.cos(thigh), np.sin(thigh)),
            abs(rng.normal(0, 55)),
        )
        p.foot(side, _u(rng, -40, 15), _u(rng, -10, 25))
        _arm(p, rng, side, "free")


FAMILIES: dict[str, tuple[float, Callable[[Poser, Rng], None]]] = {
    "stand": (0.22, _stand),
    "walk": (0.10, _walk),
    "run": (0.09, _run),
    "sit_chair": (0.10, _sit_chair),
    "sit_floor": (0.04, _sit_floor),
    "crouch": (0.07, _crouch),
    "kneel": (0.04, _kneel),
    "reach": (0.07, _reach_out),
    "bend": (0.04, _bend),
    "kick": (0.05, _kick),
    "throw": (0.04, _throw),
    "jump": (0.03, _jump),
    "lie": (0.01, _lie),
    "sport": (0.06, _sport),
    "wild": (0.04, _wild),
}


def sample_pose(rig: Rig, rng: Rng, family: str | None = None) -> tuple[Array, str]:
    """Draw a pose.

    Args:
        rig: of the body.
        rng: numpy random generator; the pose is a function of its state.
        family: a key of FAMILIES, or None for one drawn by their weights.

    Returns:
        (104, 3, 3) rotations and the family's name. Mirrored with probability 1/2, so that left and right are
        alike in the population. Poses whose limbs go through the body are drawn again, a dozen times at most.

    Raises:
        UserError: for an unknown family.
    """
    if family is None:
        names = list(FAMILIES)
        family = str(rng.choice(names, p=np.array([FAMILIES[name][0] for name in names])))
    if family not in FAMILIES:
        raise UserError(f"unknown pose family {family!r}; known: {', '.join(FAMILIES)}")
    best, least = None, np.inf
    for _ in range(_TRIES):
        poser = Poser(rig)
        FAMILIES[family][1](poser, rng)
        depth = penetration_m(rig, poser.pose)
        if depth < least:
            best, least = poser.pose, depth
        if depth <= 0.015:
            break
    assert best is not None
    if rng.random() < 0.5:
        best = rig.mirrored(best)
    return best, family


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
