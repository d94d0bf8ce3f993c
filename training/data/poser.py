"""Setting limbs, spine and hands of the Anny rig by directions, targets and angles a person would name."""

from __future__ import annotations

from typing import Any

import numpy as np

from training.data.rig import NECK, SPINE, Array, Limb, Rig, euler, frame, part_of, rotation, unit

_TWIST_LIMIT = np.radians(100)  # of the whole arm or thigh about itself, from the straight swing
_ARM_BEND_LIMIT, _LEG_BEND_LIMIT = np.radians(145), np.radians(150)


def toward(side: str, out: float, front: float, up: float) -> Array:
    """Return a rig-frame vector (3,) from amounts outwards on `side`, to the front and upwards."""
    return np.array([out if side == "L" else -out, -front, up])


def reach(limb: Limb, target_m: Array, pole: Array) -> tuple[Array, float]:
    """Two-bone inverse kinematics: return the upper part's unit direction (3,) and the bend in radians.

    Args:
        limb: its lengths are used.
        target_m: (3,) the end relative to the limb's upper joint; a target too far or too near is moved.
        pole: (3,) direction in which the middle joint points.
    """
    a, b = limb.lengths
    distance = float(np.clip(np.linalg.norm(target_m), abs(a - b) + 0.12 * (a + b), (a + b) * 0.999))
    line = unit(target_m)
    across = unit(pole - line * (pole @ line))
    cosine = np.clip((a * a + distance * distance - b * b) / (2 * a * distance), -1, 1)
    upper = cosine * line + np.sqrt(1 - cosine * cosine) * across
    inner = np.arccos(np.clip((a * a + b * b - distance * distance) / (2 * a * b), -1, 1))
    return upper, float(np.pi - inner)


class Poser:
    """A pose under construction; set the root and the spine first, then limbs.

    Attributes:
        pose: (104, 3, 3) rotations in the `local-ref` parameterisation, see training.data.rig.
    """

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.pose = np.tile(np.eye(3), (len(rig.names), 1, 1))

    def _chain(self, bones: tuple[str, ...], turn: Array) -> None:
        for name in bones:
            self.pose[self.rig.index[name]] = part_of(turn, 1 / len(bones))

    def root(self, forward_deg: float = 0.0, left_deg: float = 0.0, turn_deg: float = 0.0) -> None:
        """Lean the whole body forwards and to the left, and turn it to the left."""
        self.pose[0] = euler(0, 0, turn_deg) @ euler(forward_deg, left_deg, 0)

    def spine(self, forward_deg: float = 0.0, left_deg: float = 0.0, turn_deg: float = 0.0) -> None:
        """Bend the spine forwards and to the left, and twist it to the left."""
        self._chain(SPINE, euler(forward_deg, left_deg, turn_deg))

    def neck(self, down_deg: float = 0.0, left_deg: float = 0.0, turn_deg: float = 0.0) -> None:
        """Nod the head down, tilt it to the left and turn it to the left."""
        self._chain(NECK, euler(down_deg, left_deg, turn_deg))

    def _limb(self, limb: Limb, before: Array, upper: Array, pole: Array, bend: float) -> None:
        """Point a limb; `before` is the turn of the bones between the frame of `upper` and the limb."""
        target = frame(upper, np.cross(pole, upper)) @ frame(limb.along, limb.hinge).T
        cross = np.cross(limb.along, unit(upper))
        swing = rotation(cross, float(np.arctan2(np.linalg.norm(cross), limb.along @ unit(upper))))
        turned = swing.T @ target
        side = frame(limb.along, limb.hinge)
        twist = np.arctan2(side[:, 2] @ turned @ side[:, 1], side[:, 1] @ turned @ side[:, 1])
        twist = float(np.clip(twist, -_TWIST_LIMIT, _TWIST_LIMIT))
        self.pose[limb.upper] = before.T @ swing @ rotation(limb.along, 0.6 * twist)
        self.pose[limb.upper_twist] = rotation(limb.along, 0.4 * twist)
        self.pose[limb.lower] = rotation(limb.hinge, bend - limb.bend)

    def arm(self, side: str, upper: Array, pole: Array, bend_deg: float) -> None:
        """Point an upper arm along `upper` (3,) in the chest's frame, its elbow towards `pole`, bent by `bend_deg`."""
        limb, upper = self.rig.limbs["arm", side], unit(upper)
        sign = 1.0 if side == "L" else -1.0
        out, front, up = sign * upper[0], -upper[1], upper[2]
        raised = 26 * max(0.0, up + 0.15)  # the shoulder blade follows an arm that goes up, forwards or across
        protracted = 12 * max(0.0, front) + 10 * max(0.0, -out) - 8 * max(0.0, -front)
        clavicle = euler(0, -sign * raised, -sign * protracted)
        self.pose[self.rig.index[f"clavicle.{side}"]] = part_of(clavicle, 0.6)
        self.pose[self.rig.index[f"shoulder01.{side}"]] = part_of(clavicle, 0.4)
        bend = float(np.clip(np.radians(bend_deg), 0, _ARM_BEND_LIMIT))
        self._limb(limb, clavicle, upper, pole, bend)

    def arm_to(self, side: str, target: Array, pole: Array) -> None:
        """Bring a wrist to `target` (3,) relative to the shoulder in arm lengths, in the chest's frame."""
        limb = self.rig.limbs["arm", side]
        upper, bend = reach(limb, target * sum(limb.lengths), pole)
        self.arm(side, upper, pole, float(np.degrees(bend)))

    def arm_to_world(self, side: str, target: Array, pole: Array) -> None:
        """As arm_to, with target and pole in the world's axes rather than the chest's."""
        chest = self.rig.turn_of(self.pose, self.rig.index["spine01"])
        self.arm_to(side, chest.T @ target, chest.T @ pole)

    def leg(self, side: str, upper: Array, pole: Array, bend_deg: float) -> None:
        """Point a thigh along `upper` (3,) in the pelvis's frame, its knee towards `pole`, bent by `bend_deg`."""
        bend = float(np.clip(np.radians(bend_deg), 0, _LEG_BEND_LIMIT))
        self._limb(self.rig.limbs["leg", side], np.eye(3), unit(upper), pole, bend)

    def leg_to(self, side: str, target: Array, pole: Array) -> None:
        """Bring an ankle to `target` (3,) relative to the hip in leg lengths; both vectors in the world's axes."""
        limb = self.rig.limbs["leg", side]
        local = self.pose[0].T
        upper, bend = reach(limb, local @ target * sum(limb.lengths), local @ pole)
        self.leg(side, upper, local @ pole, float(np.degrees(bend)))

    def foot(self, side: str, up_deg: float = 0.0, out_deg: float = 0.0) -> None:
        """Turn a foot against the shin: toes up (negative: pointed) and outwards."""
        self.pose[self.rig.limbs["leg", side].end] = euler(-up_deg, 0, out_deg if side == "L" else -out_deg)

    def plant(self, side: str, heel_deg: float = 0.0, out_deg: float = 0.0) -> None:
        """Lay a foot level in the world, its heel lifted by `heel_deg`, as far as the ankle goes."""
        limb = self.rig.limbs["leg", side]
        shin = self.rig.turn_of(self.pose, limb.lower_twist)
        knee = -shin[:, 1]  # the way the shin faces, for the foot's heading
        heading = np.arctan2(knee[0], -knee[1]) if np.hypot(knee[0], knee[1]) > 0.3 else 0.0
        level = rotation((0, 0, 1), heading) @ euler(heel_deg, 0, out_deg if side == "L" else -out_deg)
        local = shin.T @ level
        angle = float(np.degrees(np.arccos(np.clip((np.trace(local) - 1) / 2, -1, 1))))
        self.pose[limb.end] = part_of(local, min(1.0, 50 / max(angle, 1e-6)))

    def hand(
        self, side: str, curl_deg: float = 20.0, pronate_deg: float = 0.0, flex_deg: float = 0.0, rng: Any = None
    ) -> None:
        """Close the fingers by `curl_deg` a joint, turn the forearm, bend the wrist; `rng` varies the fingers."""
        rig, limb = self.rig, self.rig.limbs["arm", side]
        sign = 1.0 if side == "L" else -1.0
        half = rotation(limb.fore, np.radians(pronate_deg) * sign / 2)
        self.pose[limb.lower_twist] = half
        self.pose[limb.end] = half @ rotation(rig.curls[rig.index[f"finger3-1.{side}"]], np.radians(flex_deg))
        for finger in range(1, 6):
            share = 0.35 if finger == 1 else 1.0
            varied = share * curl_deg + (0.0 if rng is None else rng.normal(0, 4))
            for k in range(1, 4):
                bone = rig.index[f"finger{finger}-{k}.{side}"]
                amount = varied * (0.7 if k == 1 else 1.0)
                self.pose[bone] = rotation(rig.curls[bone], np.radians(np.clip(amount, -8, 85)))
