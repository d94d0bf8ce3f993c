"""Cluttered procedural backgrounds: a bank of textures per process, from which every sample takes a varied crop."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError

Rng = Any  # numpy.random.Generator
Picture = NDArray[np.uint8]

SIDE_PX = 512
KINDS = ("clouds", "room", "field", "crowd", "city", "wood", "shapes", "foliage", "text", "gradient")


def octaves(rng: Rng, side: int, coarsest: int = 2, finest: int = 7, fall: float = 0.55) -> NDArray[np.float32]:
    """Return multi-octave noise (side, side) float32 in [0, 1]."""
    total, weight = np.zeros((side, side), np.float32), 1.0
    for octave in range(coarsest, finest + 1):
        grid = rng.random((2**octave, 2**octave), np.float32)
        total += weight * cv2.resize(grid, (side, side), interpolation=cv2.INTER_CUBIC)
        weight *= fall
    low, high = float(total.min()), float(total.max())
    return (total - low) / max(high - low, 1e-6)


def _colour(rng: Rng, vivid: float = 0.5) -> NDArray[np.float32]:
    grey = rng.uniform(20, 240)
    return np.clip(grey + rng.normal(0, 60 * vivid, 3), 0, 255).astype(np.float32)


def _scalar(colour: NDArray[np.floating]) -> tuple[float, float, float]:
    return float(colour[0]), float(colour[1]), float(colour[2])


def _blend(mask: NDArray[np.float32], first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(first + mask[..., None] * (second - first), np.float32)


def _clouds(rng: Rng, side: int) -> NDArray[np.float32]:
    picture = _blend(octaves(rng, side, 1, int(rng.integers(4, 9)), rng.uniform(0.4, 0.8)), _colour(rng), _colour(rng))
    return _blend(octaves(rng, side, 1, 6), picture, _colour(rng))


def _gradient(rng: Rng, side: int) -> NDArray[np.float32]:
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side - 0.5
    ramp = np.clip(0.5 + np.cos(angle) * x + np.sin(angle) * y, 0, 1).astype(np.float32)
    return _blend(ramp, _colour(rng, 0.3), _colour(rng, 0.3)) + rng.normal(0, 3, (side, side, 1)).astype(np.float32)


def _plane(rng: Rng, side: int, horizon: float) -> NDArray[np.float32]:
    """Texture of a level floor seen in perspective, (rows below the horizon, side, 3)."""
    rows = side - int(horizon * side)
    y = np.arange(1, rows + 1, dtype=np.float32)[:, None] / rows
    x = (np.arange(side, dtype=np.float32)[None] / side - rng.uniform(0.2, 0.8)) / (y + 0.08)
    depth = 1 / (y + 0.08) + np.zeros_like(x)
    turn = rng.uniform(-0.8, 0.8)
    u, v = x * np.cos(turn) - depth * np.sin(turn), x * np.sin(turn) + depth * np.cos(turn)
    rate = rng.uniform(1.5, 6)
    kind = rng.integers(0, 4)
    if kind == 0:
        mask = ((np.floor(u * rate) + np.floor(v * rate)) % 2).astype(np.float32)
    elif kind == 1:  # boards
        mask = (np.modf(np.abs(u * rate))[0] < 0.06).astype(np.float32)
    elif kind == 2:  # painted lines
        mask = (
            (np.abs(np.modf(np.abs(u * rate * 0.4))[0] - 0.5) < 0.03) | (np.abs(np.modf(v * 0.4)[0]) < 0.04)
        ).astype(np.float32)
    else:
        mask = np.zeros_like(u)
    floor = _blend(0.8 * mask, np.broadcast_to(_colour(rng), (rows, side, 3)).astype(np.float32), _colour(rng))
    noise = octaves(rng, side, 3, 8, 0.8)[:rows]
    return np.ascontiguousarray(floor * (0.7 + 0.6 * noise[..., None]))


def _boxes(rng: Rng, picture: NDArray[np.float32], count: int, low: float, high: float) -> None:
    """Furniture, pictures, windows: rectangles with a frame and a lighter or darker side, between two heights."""
    side = picture.shape[0]
    for _ in range(count):
        w, h = (rng.uniform(0.04, 0.4, 2) * side).astype(int)
        x, bottom = int(rng.uniform(-0.1, 1) * side), int(rng.uniform(low, high) * side)
        colour = _colour(rng)
        cv2.rectangle(picture, (x, bottom - h), (x + w, bottom), _scalar(colour), -1)
        if rng.random() < 0.6:
            cv2.rectangle(
                picture,
                (x, bottom - h),
                (x + w, bottom),
                _scalar(colour * rng.uniform(0.4, 1.5)),
                int(rng.integers(1, 9)),
            )
        for k in range(int(rng.integers(0, 5))):  # shelves or panes
            y = bottom - int(h * (k + 1) / 6)
            cv2.line(picture, (x, y), (x + w, y), _scalar(colour * 0.5), int(rng.integers(1, 4)))


def _room(rng: Rng, side: int) -> NDArray[np.float32]:
    horizon = rng.uniform(0.45, 0.8)
    wall = _blend(
        octaves(rng, side, 1, 3),
        np.broadcast_to(_colour(rng, 0.3), (side, side, 3)).astype(np.float32),
        _colour(rng, 0.3),
    )
    floor = _plane(rng, side, horizon)
    wall[side - len(floor) :] = floor
    if rng.random() < 0.4:  # a corner
        x = int(rng.uniform(0.1, 0.9) * side)
        wall[: side - len(floor), x:] *= rng.uniform(0.6, 0.95)
    _boxes(rng, wall, int(rng.integers(2, 12)), 0.2, horizon + 0.12)
    return wall


def _field(rng: Rng, side: int) -> NDArray[np.float32]:
    horizon = rng.uniform(0.2, 0.65)
    top = np.array([rng.uniform(150, 255), rng.uniform(120, 225), rng.uniform(80, 215)], np.float32)
    sky = _blend(
        octaves(rng, side, 1, 6),
        np.broadcast_to(top, (side, side, 3)).astype(np.float32),
        np.array([240, 235, 230], np.float32),
    )
    rows = side - int(horizon * side)
    greens = np.array(
        [[40, 110, 70], [60, 150, 110], [110, 160, 190], [150, 160, 170], [230, 235, 240], [90, 100, 110]], np.float32
    )
    ground = greens[rng.integers(0, len(greens))] * rng.uniform(0.5, 1.2)
    grain = octaves(rng, side, 4, 9, 0.95)[:rows]
    sky[side - rows :] = np.broadcast_to(ground, (rows, side, 3)) * (0.55 + 0.9 * grain[..., None])
    if rng.random() < 0.4:
        plane = _plane(rng, side, horizon)
        sky[side - rows :] = 0.6 * sky[side - rows :] + 0.4 * plane
    if rng.random() < 0.7:  # a line of trees, stands or hills
        line = octaves(rng, side, 2, 8, 0.7)[0] * rng.uniform(0.05, 0.5) * side
        far = _colour(rng, 0.4) * 0.5
        grain = octaves(rng, side, 4, 9, 0.9)
        edge = int(horizon * side)
        inside = (np.arange(side)[:, None] > edge - line[None]) & (np.arange(side)[:, None] < edge + 2)
        sky[inside] = (far * (0.4 + 1.2 * grain[..., None]))[inside]
    return sky


def _crowd(rng: Rng, side: int) -> NDArray[np.float32]:
    picture = _clouds(rng, side) * 0.4
    size = rng.uniform(8, 46)
    for row in np.arange(0, side + size * 2, size * rng.uniform(0.6, 1.1)):
        for column in np.arange(-size, side + size, size * rng.uniform(0.7, 1.2)):
            x, y = column + rng.normal(0, size * 0.2), row + rng.normal(0, size * 0.15)
            shirt, skin = _colour(rng, 1.0), np.array([120, 150, 200], np.float32) * rng.uniform(0.3, 1.1)
            scale = size * rng.uniform(0.8, 1.2)
            cv2.ellipse(
                picture, (int(x), int(y + scale)), (int(scale * 0.5), int(scale * 0.8)), 0, 0, 360, _scalar(shirt), -1
            )
            cv2.circle(picture, (int(x), int(y)), max(1, int(scale * 0.27)), _scalar(skin), -1)
            if scale > 14:
                cv2.ellipse(
                    picture,
                    (int(x), int(y - scale * 0.1)),
                    (int(scale * 0.26), int(scale * 0.18)),
                    0,
                    180,
                    360,
                    _scalar(skin * 0.2),
                    -1,
                )
    blurred: Any = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.6, 3))
    return np.asarray(blurred, np.float32)


def _city(rng: Rng, side: int) -> NDArray[np.float32]:
    picture = _field(rng, side)
    horizon = int(rng.uniform(0.5, 0.8) * side)
    x = -20
    while x < side:
        w, h = int(rng.uniform(30, 160)), int(rng.uniform(0.2, 1.0) * horizon)
        colour = _colour(rng, 0.35)
        cv2.rectangle(picture, (x, horizon - h), (x + w, horizon), _scalar(colour), -1)
        pane = _scalar(colour * rng.uniform(0.3, 1.7))
        step = int(rng.integers(8, 28))
        for y in range(horizon - h + 5, horizon - 6, step):
            for pane_x in range(x + 4, x + w - 6, step):
                cv2.rectangle(picture, (pane_x, y), (pane_x + step // 2, y + int(step * 0.6)), pane, -1)
        x += w + int(rng.integers(-5, 20))
    _boxes(rng, picture, int(rng.integers(0, 5)), 0.6, 0.95)
    return picture


def _wood(rng: Rng, side: int) -> NDArray[np.float32]:
    grain = octaves(rng, side, 2, 8, 0.75)
    stretched: Any = cv2.resize(
        grain[:, : side // int(rng.integers(4, 24))], (side, side), interpolation=cv2.INTER_LINEAR
    )
    return _blend(stretched if rng.random() < 0.5 else stretched.T, _colour(rng), _colour(rng))


def _shapes(rng: Rng, side: int) -> NDArray[np.float32]:
    picture = _clouds(rng, side)
    for _ in range(int(rng.integers(10, 60))):
        colour, centre = _scalar(_colour(rng, 1.0)), rng.uniform(0, side, 2)
        size = rng.uniform(0.02, 0.3) * side
        kind = rng.integers(0, 4)
        if kind == 0:
            corners = centre + rng.normal(0, size * 0.7, (int(rng.integers(3, 8)), 2))
            cv2.fillPoly(picture, [corners.astype(np.int32)], colour)
        elif kind == 1:
            axes = (int(size * rng.uniform(0.2, 1)), int(size * rng.uniform(0.2, 1)))
            cv2.ellipse(picture, centre.astype(int).tolist(), axes, rng.uniform(0, 180), 0, 360, colour, -1)
        elif kind == 2:
            end = centre + rng.normal(0, side * 0.4, 2)
            cv2.line(picture, centre.astype(int).tolist(), end.astype(int).tolist(), colour, int(rng.integers(1, 24)))
        else:
            _limbs(rng, picture, centre, size)
    return picture


def _limbs(rng: Rng, picture: NDArray[np.float32], centre: NDArray[np.floating], size: float) -> None:
    """Skin-coloured bent bars: arms and legs of nobody."""
    colour = np.array([120, 150, 205], np.float32) * rng.uniform(0.25, 1.15)
    points = np.cumsum(np.vstack([centre, rng.normal(0, size, (2, 2))]), 0).astype(np.int32)
    cv2.polylines(picture, [points], False, _scalar(colour), max(2, int(size * 0.3)), cv2.LINE_AA)


def _foliage(rng: Rng, side: int) -> NDArray[np.float32]:
    base = np.array([rng.uniform(20, 70), rng.uniform(70, 150), rng.uniform(40, 120)], np.float32)
    picture = np.ascontiguousarray(base * (0.2 + 1.3 * octaves(rng, side, 3, 9, 0.95)[..., None]), np.float32)
    for _ in range(int(rng.integers(100, 700))):
        x, y = rng.integers(0, side, 2)
        axes = (int(rng.integers(2, 16)), int(rng.integers(1, 7)))
        cv2.ellipse(
            picture, (int(x), int(y)), axes, rng.uniform(0, 180), 0, 360, _scalar(base * rng.uniform(0.3, 1.9)), -1
        )
    for _ in range(int(rng.integers(0, 6))):
        x = int(rng.integers(0, side))
        trunk = _scalar(np.array([50, 70, 90], np.float32) * rng.uniform(0.4, 1.5))
        cv2.line(picture, (x, 0), (x + int(rng.normal(0, 40)), side), trunk, int(rng.integers(4, 40)))
    return picture


def _text(rng: Rng, side: int) -> NDArray[np.float32]:
    picture = np.clip(_room(rng, side) if rng.random() < 0.5 else _clouds(rng, side), 0, 255).astype(np.uint8)
    letters = np.array(list("ABCDEFGHKLMNOPRSTUVXYZ0123456789"))
    for _ in range(int(rng.integers(5, 22))):
        word = "".join(rng.choice(letters, int(rng.integers(2, 10))))
        x, y = (rng.uniform(-0.1, 0.9, 2) * side).astype(int)
        scale, thick = rng.uniform(0.5, 4), int(rng.integers(1, 8))
        if rng.random() < 0.5:
            w, h = int(18 * scale * len(word)), int(30 * scale)
            cv2.rectangle(picture, (int(x) - 5, int(y) - h), (int(x) + w, int(y) + 10), _scalar(_colour(rng, 1.0)), -1)
        cv2.putText(
            picture,
            word,
            (int(x), int(y)),
            int(rng.integers(0, 5)),
            scale,
            _scalar(_colour(rng, 1.0)),
            thick,
            cv2.LINE_AA,
        )
    return picture.astype(np.float32)


_MAKERS = {
    "clouds": _clouds, "room": _room, "field": _field, "crowd": _crowd, "city": _city, "wood": _wood,
    "shapes": _shapes, "foliage": _foliage, "text": _text, "gradient": _gradient,
}  # fmt: skip


def make_background(kind: str, rng: Rng, side: int = SIDE_PX) -> Picture:
    """Return one background (side, side, 3) uint8 BGR; raises UserError for a kind that is not in KINDS."""
    if kind not in _MAKERS:
        raise UserError(f"unknown background {kind!r}; known: {', '.join(KINDS)}")
    return np.clip(_MAKERS[kind](rng, side), 0, 255).astype(np.uint8)


@lru_cache(maxsize=2)
def bank(seed: int, count: int = 80) -> tuple[Picture, ...]:
    """Return `count` backgrounds, the same for the same seed in every process."""
    cv2.setNumThreads(1)
    return tuple(make_background(KINDS[k % len(KINDS)], np.random.default_rng([seed, 77, k])) for k in range(count))


def _varied_crop(rng: Rng, picture: Picture, size_wh: tuple[int, int], zoom: tuple[float, float]) -> Picture:
    """Cut a window of random place and size, resize and perhaps mirror it, and change its colours."""
    width, height = size_wh
    side = picture.shape[0]
    scale = rng.uniform(*zoom) * side / max(size_wh)
    w, h = min(side, int(width * scale)), min(side, int(height * scale))
    x, y = int(rng.integers(0, side - w + 1)), int(rng.integers(0, side - h + 1))
    cut: Any = picture[y : y + h, x : x + w]
    if rng.random() < 0.5:
        cut = cut[:, ::-1]
    cut = cv2.resize(cut, size_wh, interpolation=cv2.INTER_LINEAR)
    gain = np.exp(rng.normal(0, 0.25) + rng.normal(0, 0.10, 3))
    shift = rng.normal(0, 10)
    levels = np.arange(256, dtype=np.float32)[:, None] * gain + shift
    table = np.clip(levels, 0, 255).astype(np.uint8).reshape(256, 1, 3)
    return np.asarray(cv2.LUT(cut, table), np.uint8)


def sample_background(rng: Rng, seed: int, size_wh: tuple[int, int]) -> Picture:
    """Return a background (H, W, 3) uint8 BGR: a crop of the bank, perhaps with a second laid in, or blurred."""
    pictures = bank(seed)
    picture: Any = _varied_crop(rng, pictures[rng.integers(len(pictures))], size_wh, (0.45, 1.0))
    if rng.random() < 0.35:
        other = _varied_crop(rng, pictures[rng.integers(len(pictures))], size_wh, (0.3, 1.0))
        mask = np.zeros(size_wh[::-1], np.uint8)
        corners = rng.uniform(-0.2, 1.2, (int(rng.integers(3, 6)), 2)) * size_wh
        cv2.fillPoly(mask, [corners.astype(np.int32)], 255)
        cv2.copyTo(other, mask, picture)
    if rng.random() < 0.45:
        picture = cv2.GaussianBlur(picture, (0, 0), rng.uniform(0.5, 0.012 * max(size_wh)))
    return np.asarray(picture, np.uint8)


def sample_texture(rng: Rng, seed: int, size_wh: tuple[int, int]) -> Picture:
    """Return a texture (H, W, 3) uint8 BGR for things in the foreground."""
    pictures = bank(seed)
    return _varied_crop(rng, pictures[rng.integers(len(pictures))], size_wh, (0.1, 0.5))
