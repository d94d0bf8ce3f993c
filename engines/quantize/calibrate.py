"""What ranges the tensors of a graph take on real images: one pass, histograms that grow with what they see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from numpy.typing import NDArray

from metro_edge.errors import UserError
from metro_edge.spec import INPUT_NAME

LEVELS = 127  # of symmetric int8 on either side of zero
_BINS = 2048
METHODS = ("mse", "percentile", "entropy", "max")
_STEP = 8  # bins between the thresholds that entropy compares


@dataclass
class Magnitudes:
    """Histogram of the magnitudes of one tensor, from 0 to `limit`, which doubles whenever a value exceeds it."""

    limit: float = 0.0
    largest: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(_BINS, np.int64))

    def add(self, values: NDArray[np.floating]) -> None:
        """Count the values of an array of any shape."""
        magnitudes = np.abs(values).ravel()
        largest = float(magnitudes.max(initial=0.0))
        if not np.isfinite(largest):
            raise UserError("calibration met a value that is not finite: the network's weights are damaged")
        self.largest = max(self.largest, largest)
        if self.limit == 0.0:
            self.limit = largest
        if largest == 0.0:
            self.counts[0] += magnitudes.size
            return
        while largest > self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(_BINS // 2, np.int64)])
            self.limit *= 2
        bins = np.minimum((magnitudes * (_BINS / self.limit)).astype(np.int32), _BINS - 1)
        self.counts += np.bincount(bins, minlength=_BINS)

    def threshold(self, method: str, percentile: float = 99.99) -> float:
        """Return the magnitude that the largest int8 level stands for; greater ones are clipped to it.

        Args:
            method: `max` clips nothing; `percentile` clips the share beyond it; `mse` takes the threshold of the
                least mean squared error, of rounding and clipping together; `entropy` the one whose levels keep most
                of the distribution, by the Kullback-Leibler divergence (Migacz, 8-bit inference with TensorRT, 2017).
            percentile: of the magnitudes, in percent.

        Raises UserError for an unknown method.
        """
        if method not in METHODS:
            raise UserError(f"unknown calibration method {method!r}; known: {', '.join(METHODS)}")
        if method == "max" or self.largest == 0.0:
            return self.largest
        edges = self.limit / _BINS * np.arange(1, _BINS + 1)
        if method == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            return min(float(edges[np.searchsorted(share, percentile / 100)]), self.largest)
        if method == "entropy":
            return min(float(edges[self._most_kept()]), self.largest)
        middles = edges - self.limit / _BINS / 2
        candidates = self.largest * np.linspace(0.1, 1.0, 91)
        errors = [self._squared_error(middles, float(candidate)) for candidate in candidates]
        return float(candidates[int(np.argmin(errors))])

    def _most_kept(self) -> int:
        """Return the last bin that is not clipped when the levels diverge least from the distribution."""
        counts = self.counts.astype(np.float64)
        # The many zeros behind a Relu lie on a level whatever the threshold is, and would drown all others.
        counts[0] = 0.0
        last = int(np.flatnonzero(self.counts)[-1])
        # The largest value lies in the upper half of the bins, so there are more than LEVELS before it.
        kept = (*range(LEVELS, last, _STEP), last)
        return min(kept, key=lambda bin_: (_divergence(counts, bin_ + 1), -bin_))

    def _squared_error(self, middles: NDArray, threshold: float) -> float:
        step = threshold / LEVELS
        clipped = np.maximum(middles - threshold, 0.0)
        # Values that fall below half a step all become 0; rounding errs by step^2 / 12 elsewhere.
        inside = np.where(middles < step / 2, middles**2, step**2 / 12)
        return float((self.counts * np.where(clipped > 0, clipped**2, inside)).sum())


def _divergence(counts: NDArray[np.float64], kept: int) -> float:
    """Return how far LEVELS levels over the first `kept` bins are from the counts, what is clipped in the last one."""
    exact = counts[:kept].copy()
    filled = exact > 0
    exact[-1] += counts[kept:].sum()
    if not exact.any():
        return float("inf")
    # A level stands for the same share of each of its bins that holds anything.
    level = np.minimum(np.arange(kept) * LEVELS // kept, LEVELS - 1)
    share = np.bincount(level, counts[:kept], LEVELS) / np.maximum(np.bincount(level, filled, LEVELS), 1)
    stored = np.where(filled, share[level], 0.0)
    # What was clipped into an empty bin has no share: a count of one keeps the divergence finite, and large.
    stored[-1] = max(stored[-1], 1.0)
    p, q = exact[exact > 0], stored[exact > 0]
    return float((p / p.sum() * np.log((p / p.sum()) / (q / stored.sum()))).sum())


def channel_maxima(values: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Return the largest magnitude (C,) of each channel of an activation."""
    axis %= values.ndim
    return np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis))


def calibrate(
    model: onnx.ModelProto, tensors: Sequence[str], batches: Iterable[NDArray[np.float32]]
) -> dict[str, Magnitudes]:
    """Run batches of images (N, 3, S, S) through the FP32 graph and collect the magnitudes of `tensors`.

    Raises UserError when there is no image, or a value is not finite.
    """
    import onnxruntime as ort

    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    del observed.graph.output[:]
    inputs = [name for name in tensors if name == INPUT_NAME]
    inner = [name for name in tensors if name != INPUT_NAME]
    observed.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in inner)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(observed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    del observed
    found = {name: Magnitudes() for name in tensors}
    count = 0
    for images in batches:
        count += len(images)
        for name in inputs:
            found[name].add(images)
        # Asked for no output, ONNX Runtime refuses to run.
        for name, values in zip(inner, session.run(inner, {INPUT_NAME: images}) if inner else [], strict=True):
            found[name].add(values)
    if not count:
        raise UserError("there is no image to calibrate on")
    return found
