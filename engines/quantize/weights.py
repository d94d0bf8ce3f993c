"""Levels of INT8 and FP8, the scales of weights, and what rounding a weight costs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from metro_edge.errors import UserError

MAX, MSE = "max", "mse"
WEIGHT_METHODS = (MAX, MSE)
_SHARES = np.linspace(0.4, 1.0, 61)  # of a channel's largest weight, tried as the threshold


@dataclass(frozen=True)
class Format:
    """A type of 8 bits.

    Attributes:
        greatest: the largest level.
        dtype: of the stored levels.
        whole: levels are whole numbers, -greatest to greatest; otherwise the dtype's own steps.
    """

    greatest: float
    dtype: Any
    whole: bool

    def scale(self, largest: NDArray[np.floating]) -> NDArray[np.float32]:
        """Return what one level stands for; what is zero, or too small for a float32 scale, becomes zero by any."""
        scale = largest / self.greatest
        return np.where(scale >= np.finfo(np.float32).tiny, scale, 1.0).astype(np.float32)

    def levels(self, values: NDArray[np.floating]) -> NDArray:
        """Return values in units of their scale as levels."""
        clipped = np.clip(values, -self.greatest, self.greatest)
        return (np.rint(clipped) if self.whole else clipped).astype(self.dtype)


FORMATS = {
    "int8": Format(127, np.int8, whole=True),
    "fp8": Format(448, ml_dtypes.float8_e4m3fn, whole=False),
}


def weight_scale(weight: NDArray[np.float32], axis: int, kind: str, method: str = MSE) -> NDArray[np.float32]:
    """Return one scale (C,) per output channel, along `axis`.

    Args:
        weight: any shape.
        axis: of output channels.
        kind: int8 or fp8.
        method: `max` gives the greatest level to a channel's largest weight; `mse` takes the threshold of the least
            squared error of rounding and clipping together. FP8's steps grow with the weights, so `max` serves.

    Raises:
        UserError: an unknown method.
    """
    if method not in WEIGHT_METHODS:
        raise UserError(f"unknown method {method!r} for scales of weights; known: {', '.join(WEIGHT_METHODS)}")
    form = FORMATS[kind]
    rows = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1)
    largest = np.abs(rows).max(1)
    scales = form.scale(largest)
    if method == MSE and form.whole:
        least = np.full(len(rows), np.inf)
        for share in _SHARES:
            scale = form.scale(largest * share)
            levels = form.levels(rows / scale[:, None]).astype(np.float32)
            error = ((levels * scale[:, None] - rows) ** 2).sum(1)
            scales = np.where(error <= least, scale, scales)  # the least clipping among equals
            least = np.minimum(error, least)
    return scales


def quantised(weight: NDArray[np.float32], scale: NDArray[np.float32], axis: int, kind: str) -> NDArray:
    """Return the levels of a weight, each the nearest."""
    return FORMATS[kind].levels(weight / along(scale, axis, weight.ndim))


def weight_error(weight: NDArray[np.float32], axis: int, kind: str = "int8", method: str = MSE) -> float:
    """Return the root mean square error of a quantised weight as a share of its root mean square."""
    scale = weight_scale(weight, axis, kind, method)
    stored = quantised(weight, scale, axis, kind).astype(np.float32) * along(scale, axis, weight.ndim)
    size = float(np.sqrt((weight.astype(np.float64) ** 2).mean()))
    return float(np.sqrt(((stored - weight).astype(np.float64) ** 2).mean())) / size if size else 0.0


def along(values: NDArray, axis: int, dimensions: int) -> NDArray:
    """Return values (C,) shaped to be multiplied with an array along one of its axes."""
    return values.reshape([-1 if i == axis else 1 for i in range(dimensions)])
