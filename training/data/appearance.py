"""How a made person looks: skin, hair, clothes with textures, loose cloth and hair as displaced surface.

Everything is per vertex of the Anny mesh and drawn with interpolated colours. Colours are BGR, albedo is linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data.rig import Rig, anny_model, load_rig

Floats = NDArray[np.float32]
Rng = Any  # numpy.random.Generator

GAMMA = 2.2
# Skin from light to dark as sRGB; tones between neighbours are mixed.
_SKIN_RGB = np.array(
    [
        [250, 222, 205], [243, 206, 183], [238, 195, 165], [228, 180, 148], [214, 162, 126], [198, 140, 104],
        [172, 115, 80], [145, 92, 62], [112, 70, 48], [82, 52, 38], [58, 38, 30],
    ],
    np.float32,
)  # fmt: skip
_HAIR_RGB = np.array(
    [
        [18, 15, 14], [28, 22, 19], [45, 32, 24], [70, 46, 30], [104, 72, 44], [150, 112, 66], [196, 160, 104],
        [112, 48, 24], [140, 138, 136], [208, 206, 202],
    ],
    np.float32,
)  # fmt: skip
# Parts of the body, by the bones that move a vertex most.
PARTS = ("torso", "hips", "arm", "hand", "leg", "foot", "neck", "head", "eye")


@dataclass(frozen=True)
class Tables:
    """What does not change from person to person, per vertex of the mesh in the reference pose.

    Attributes:
        part: (V,) uint8, index into PARTS.
        limb: (V,) 0 at shoulder or hip, 1 at elbow or knee, 2 at wrist or ankle; 0 elsewhere.
        rest: (V, 3) metres, rig frame, reference pose of the average body.
        along: (V,) metres down a garment: height on the torso, distance along a limb.
        head: (V, 3) metres relative to the middle of the head.
        area: (V,) square metres, a third of the triangles around.
    """

    part: NDArray[np.uint8]
    limb: Floats
    rest: Floats
    along: Floats
    head: Floats
    area: Floats


def _part_of_bone(name: str) -> str:
    stem = name.split(".")[0]
    rules = (
        ("hips", ("root", "pelvis")),
        ("torso", ("spine", "clavicle", "shoulder")),
        ("arm", ("upperarm", "lowerarm")),
        ("hand", ("wrist", "finger", "metacarpal")),
        ("leg", ("upperleg", "lowerleg")),
        ("foot", ("foot", "toe")),
    )
    for part, starts in rules:
        if stem.startswith(starts):
            return part
    return "eye" if stem == "eye" else ("head" if stem == "head" else "neck")


@lru_cache(maxsize=1)
def tables() -> Tables:
    """Return the per-vertex tables of the Anny mesh."""
    import torch

    model, rig = anny_model(), load_rig()
    with torch.no_grad():
        rest = model()["vertices"][0].numpy().astype(np.float32)
    weights, bones = model.vertex_bone_weights.numpy(), model.vertex_bone_indices.numpy()
    of_bone = np.array([PARTS.index(_part_of_bone(name)) for name in rig.names])
    share = np.zeros((len(rest), len(PARTS)), np.float32)
    for k in range(bones.shape[1]):
        np.add.at(share, (np.arange(len(rest)), of_bone[bones[:, k]]), weights[:, k])
    part = share.argmax(1).astype(np.uint8)
    limb, along = np.zeros(len(rest), np.float32), -rest[:, 2].copy()
    for (kind, side), _ in rig.limbs.items():
        mine = np.isin(part, [PARTS.index(p) for p in (("arm", "hand") if kind == "arm" else ("leg", "foot"))])
        mine &= (rest[:, 0] > 0) == (side == "L")
        t, metres = _limb_coordinate(rig, kind, side, rest[mine])
        limb[mine] = t
        if kind == "arm":
            along[mine] = metres - 0.35
    head = rest - np.array([0, -0.045, 0.665], np.float32)
    faces = model.get_triangular_faces().numpy()
    a, b, c = (rest[faces[:, k]] for k in range(3))
    third = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 6
    area = np.bincount(faces.T.ravel(), np.tile(third, 3), minlength=len(rest)).astype(np.float32)
    return Tables(part, limb, rest, along, head, area)


def _limb_coordinate(rig: Rig, kind: str, side: str, points: Floats) -> tuple[Floats, Floats]:
    limb = rig.limbs[kind, side]
    a, b = rig.heads[limb.upper], rig.heads[limb.lower]
    first = (points - a) @ limb.along
    second = (points - b) @ limb.fore
    upper, lower = limb.lengths
    # The lower part's coordinate counts where the point lies beyond the plane that halves the joint's angle.
    beyond = (points - b) @ (limb.along + limb.fore) > 0
    t = np.where(beyond, 1 + second / lower, first / upper)
    return t.astype(np.float32), np.where(beyond, upper + second, first).astype(np.float32)


def noise3(points: Floats, rng: Rng, size_m: float, waves: int = 5) -> Floats:
    """Return smooth noise (P,), about -1..1, over points (P, 3): waves of about `size_m` in random directions."""
    directions = rng.normal(0, 1, (3, waves)).astype(np.float32) * np.float32(2 / size_m)
    phases = rng.uniform(0, 2 * np.pi, waves).astype(np.float32)
    x, y, z = np.ascontiguousarray(points.T, np.float32)
    # Without BLAS, whose result depends on the processor and which once reported an invalid value for finite ones.
    noise = np.zeros_like(x)
    for (a, b, c), phase in zip(directions.T, phases, strict=True):
        noise += np.sin(a * x + b * y + c * z + phase)
    return noise / np.float32(np.sqrt(waves))


def linear_bgr(rgb: Any) -> Floats:
    """Return linear BGR in [0, 1] of sRGB values 0..255 (..., 3)."""
    bgr: Any = (np.clip(np.asarray(rgb, np.float32)[..., ::-1], 0, 255) / 255) ** GAMMA
    return np.asarray(bgr, np.float32)


@dataclass
class Look:
    """A person's surface: albedo (V, 3) linear BGR and displacement (V,) metres outwards along the normals."""

    albedo: Floats
    thickness: Floats


def _cloth_colour(rng: Rng) -> Floats:
    """A colour that clothes have: greys, blacks, whites, denim and vivid ones, as linear BGR."""
    kind = rng.random()
    if kind < 0.34:
        grey = rng.choice([rng.uniform(15, 60), rng.uniform(60, 190), rng.uniform(200, 250)], p=[0.4, 0.25, 0.35])
        return linear_bgr(np.clip(grey + rng.normal(0, 6, 3), 5, 252))
    if kind < 0.46:  # denim and navy
        level = rng.uniform(0.25, 1.2)
        return linear_bgr(np.clip(np.array([70, 92, 130]) * level, 5, 250))
    if kind < 0.58:  # beige, brown, olive
        return linear_bgr(np.clip(np.array([150, 125, 90]) * rng.uniform(0.35, 1.5) + rng.normal(0, 12, 3), 5, 250))
    hsv = np.array([[[rng.integers(0, 180), rng.integers(60, 245), rng.integers(50, 250)]]], np.uint8)
    return linear_bgr(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0])


def _pattern(t: Tables, where: NDArray[np.bool_], rng: Rng) -> Floats:
    """Return albedo (n, 3) of the garment at the vertices `where`."""
    rest, along = t.rest[where], t.along[where]
    base = np.tile(_cloth_colour(rng), (len(rest), 1))
    other = _cloth_colour(rng)
    kind = rng.choice(
        ["plain", "rings", "stripes", "checks", "dots", "camouflage", "print", "fade", "panels"],
        p=[0.46, 0.10, 0.05, 0.07, 0.04, 0.07, 0.10, 0.04, 0.07],
    )
    period, phase, share = rng.uniform(0.05, 0.20), rng.uniform(0, 1), rng.uniform(-0.5, 0.5)
    if kind == "rings":
        base[np.sin(2 * np.pi * (along / period + phase)) > share] = other
    elif kind == "stripes":
        base[np.sin(2 * np.pi * (rest[:, 0] / period + phase)) > share] = other
    elif kind == "checks":
        first = np.sin(2 * np.pi * (along / period + phase)) > share
        second = np.sin(2 * np.pi * (rest[:, 0] / period + phase)) > share
        base = base * (0.4 + 0.6 * first[:, None]) + other * (0.5 * second[:, None])
    elif kind == "dots":
        base[np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * rest[:, 0] / period) > 0.5] = other
    elif kind == "camouflage":
        size = rng.uniform(0.06, 0.3)
        base[noise3(rest, rng, size) > 0.3] = other
        base[noise3(rest, rng, size) > 0.7] = _cloth_colour(rng)
    elif kind == "print":  # a badge, number or picture on chest or back
        centre = np.array([rng.normal(0, 0.04), rng.uniform(0.15, 0.36)])
        offset = np.abs(rest[:, [0, 2]] - centre) / rng.uniform(0.04, 0.13, 2)
        inside = (offset.max(1) < 1) if rng.random() < 0.5 else ((offset**2).sum(1) < 1)
        inside &= (rest[:, 1] < 0.0) if rng.random() < 0.6 else (rest[:, 1] > 0.0)
        base[inside & (noise3(rest, rng, 0.04) > -0.4)] = other
    elif kind == "fade":
        mix = np.clip((along - along.min()) / max(np.ptp(along), 1e-6), 0, 1)[:, None] if len(along) else 0
        base = base * (1 - mix) + other * mix
    elif kind == "panels":  # sides or sleeves of another colour
        base[np.abs(rest[:, 0]) > rng.uniform(0.08, 0.2)] = other
    return base.astype(np.float32)


def sample_look(rng: Rng, gender: float, age: float) -> Look:
    """Draw a person's appearance; `gender` (0 male, 1 female) and `age` (0 baby .. 1 old) as in Anny."""
    t = tables()
    is_part = {name: t.part == k for k, name in enumerate(PARTS)}
    tone = rng.uniform(0, len(_SKIN_RGB) - 1.001)
    low = int(tone)
    skin = _SKIN_RGB[low] + (tone - low) * (_SKIN_RGB[low + 1] - _SKIN_RGB[low]) + rng.normal(0, 5, 3)
    albedo = np.tile(linear_bgr(skin), (len(t.rest), 1))
    albedo *= (1 + 0.06 * noise3(t.rest, rng, 0.1))[:, None]
    blush = 1 + 0.10 * np.clip(noise3(t.rest, rng, 0.25), 0, 1)
    albedo[:, 2] *= blush
    thickness = np.zeros(len(t.rest), np.float32)
    _face(albedo, t, is_part, rng)
    _dress(albedo, thickness, t, is_part, rng, gender)
    _hair(albedo, thickness, t, is_part, rng, gender, age)
    return Look(np.clip(albedo, 0.003, 0.95).astype(np.float32), thickness)


def _face(albedo: Floats, t: Tables, is_part: dict[str, NDArray[np.bool_]], rng: Rng) -> None:
    eye = is_part["eye"]
    albedo[eye] = linear_bgr([225, 222, 218])
    iris = eye & (t.rest[:, 1] < np.quantile(t.rest[eye, 1], 0.25) if eye.any() else eye)
    albedo[iris] = linear_bgr([40, 28, 22])
    x, y, z = np.abs(t.head[:, 0]), t.head[:, 1], t.head[:, 2]
    front = is_part["head"] & (y < -0.045)
    brow = front & (np.abs(z - 0.012) < 0.006) & (np.abs(x - 0.032) < 0.022)
    albedo[brow] *= rng.uniform(0.25, 0.7)
    lips = front & (np.abs(z + 0.062) < 0.008) & (x < 0.022)
    albedo[lips] *= np.array([0.62, 0.62, rng.uniform(0.75, 1.1)], np.float32)


def _dress(
    albedo: Floats, thickness: Floats, t: Tables, is_part: dict[str, NDArray[np.bool_]], rng: Rng, gender: float
) -> None:
    """Put on bottom, top, socks, shoes and gloves, in the order in which they cover each other."""
    z = t.rest[:, 2]
    trunk = is_part["torso"] | is_part["hips"]
    waist = rng.uniform(0.02, 0.12)
    # Bottom: from the waist to somewhere on the leg.
    length = float(rng.choice([rng.uniform(0.05, 0.3), rng.uniform(0.4, 1.0), rng.uniform(1.5, 1.9), 2.1],
                              p=[0.10, 0.28, 0.12, 0.50]))  # fmt: skip
    loose = float(rng.choice([0.001, rng.uniform(0.003, 0.02), rng.uniform(0.02, 0.045)], p=[0.2, 0.45, 0.35]))
    bottom = (trunk & (z < waist)) | (is_part["leg"] & (t.limb < length))
    albedo[bottom] = _pattern(t, bottom, rng)
    thickness[bottom] = loose * _folds(t, bottom, rng) * (0.4 + 0.6 * np.clip(t.limb[bottom] / length, 0, 1))
    # Socks and shoes.
    if rng.random() < 0.5:
        sock = (is_part["leg"] & (t.limb > rng.uniform(1.2, 1.9)) & ~bottom) | is_part["foot"]
        albedo[sock] = _cloth_colour(rng)
        thickness[sock] = 0.003
    if rng.random() < 0.85:
        shoe = is_part["foot"] | (is_part["leg"] & (t.limb > rng.uniform(1.88, 2.02)))
        albedo[shoe] = _cloth_colour(rng)
        sole = is_part["foot"] & (z < np.quantile(z[is_part["foot"]], 0.3))
        if rng.random() < 0.6:
            albedo[sole] = _cloth_colour(rng)
        thickness[shoe] = rng.uniform(0.005, 0.016)
    # Top: shoulders to the hem, sleeves of any length; few are bare or nearly so.
    bare = rng.random()
    if bare < (0.05 if gender < 0.5 else 0.0):
        return
    sleeve = float(rng.choice([-1.0, rng.uniform(0.2, 0.6), rng.uniform(0.6, 1.5), 2.1], p=[0.14, 0.36, 0.12, 0.38]))
    hem = rng.uniform(-0.14, waist) if bare > 0.15 else rng.uniform(0.08, 0.22)
    if gender > 0.5 and rng.random() < 0.12:
        hem = rng.uniform(-0.5, -0.2)  # a dress
    neck = rng.uniform(0.40, 0.50)
    depth = abs(rng.normal(0, 0.4))
    neckline = neck - depth * np.clip(0.12 - np.abs(t.rest[:, 0]), 0, None) * (t.rest[:, 1] < 0)
    top = trunk & (z > hem) & (z < neckline + 0.25 * np.abs(t.rest[:, 0]))
    top |= is_part["arm"] & (t.limb < sleeve)
    top |= is_part["leg"] & (z > hem)
    if rng.random() < 0.12:
        top |= is_part["neck"] & (z < rng.uniform(0.5, 0.56))
    albedo[top] = _pattern(t, top, rng)
    loose = float(rng.choice([0.001, rng.uniform(0.003, 0.02), rng.uniform(0.02, 0.045)], p=[0.15, 0.45, 0.40]))
    hang = np.where(is_part["arm"][top], 0.9, 0.3 + 0.7 * np.clip(0.45 - z[top], 0, 0.4) / 0.4)
    hang *= np.clip((0.56 - z[top]) / 0.08, 0.1, 1)  # it lies on the shoulders
    thickness[top] = np.maximum(thickness[top] + 0.002, loose * _folds(t, top, rng) * hang)
    if rng.random() < 0.18:  # an open jacket or a vest over it
        over = top & ((t.rest[:, 1] > -0.02) | (np.abs(t.rest[:, 0]) > rng.uniform(0.03, 0.1)))
        albedo[over] = _pattern(t, over, rng)
        thickness[over] += 0.008
    if rng.random() < 0.05:
        albedo[is_part["hand"]] = _cloth_colour(rng)


def _folds(t: Tables, where: NDArray[np.bool_], rng: Rng) -> Floats:
    """Return factors (n,) about 1 that make cloth uneven."""
    return np.clip(1 + rng.uniform(0.1, 0.5) * noise3(t.rest[where], rng, rng.uniform(0.08, 0.2)), 0.1, 2)


def _hair(
    albedo: Floats,
    thickness: Floats,
    t: Tables,
    is_part: dict[str, NDArray[np.bool_]],
    rng: Rng,
    gender: float,
    age: float,
) -> None:
    x, y, z = t.head.T
    head = is_part["head"] | is_part["neck"]
    tone = _HAIR_RGB[rng.integers(0, len(_HAIR_RGB) - (0 if age > 0.8 or rng.random() < 0.1 else 2))]
    colour = linear_bgr(np.clip(tone + rng.normal(0, 8, 3), 4, 255))
    kind = rng.random()
    scalp = head & (z + 0.75 * y > rng.uniform(0.015, 0.04)) & (z > -0.07)
    streaks = (1 + 0.25 * noise3(t.rest * np.array([1, 1, 0.3], np.float32), rng, 0.02))[:, None]
    if kind > (0.10 if gender < 0.5 else 0.02):
        albedo[scalp] = (colour * streaks)[scalp]
        thickness[scalp] += rng.uniform(0.003, 0.02)
        if (gender > 0.5 and rng.random() < 0.65) or rng.random() < 0.08:  # long: down the neck, to the back
            low = rng.uniform(-0.22, -0.07)
            long = (head | is_part["torso"]) & (y > 0.018) & (z > low) & (np.abs(x) < 0.11)
            albedo[long] = (colour * streaks)[long]
            thickness[long] += rng.uniform(0.01, 0.035)
        if rng.random() < 0.08:  # much of it
            thickness[scalp] += rng.uniform(0.02, 0.06) * np.clip((z[scalp] + 0.05) / 0.1, 0, 1)
        if rng.random() < 0.07:  # a knot
            knot = scalp & (((t.head - [0, 0.06, rng.uniform(0.02, 0.1)]) ** 2).sum(1) < 0.045**2)
            thickness[knot] += 0.04
    if gender < 0.5 and age > 0.6 and rng.random() < 0.3:
        beard = is_part["head"] & (z < -0.045) & (z > -0.13) & (y > -0.12) & (y < 0.02)
        albedo[beard] = albedo[beard] * 0.35 + (colour * streaks)[beard] * 0.65
    if rng.random() < 0.14:  # cap, beanie, helmet
        cap = head & (z + rng.uniform(0.1, 0.7) * y > rng.uniform(0.025, 0.05))
        albedo[cap] = _pattern(t, cap, rng)
        thickness[cap] = rng.uniform(0.008, 0.035)
