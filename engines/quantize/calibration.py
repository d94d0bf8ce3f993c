"""Ranges of activations for a search: the calibration methods compared, and smoothing where it helps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from engines.quantize.calibrate import METHODS, calibrate
from engines.quantize.layers import default_layers, node_names, quantisable
from engines.quantize.loss import BATCH, Judge, Loss
from engines.quantize.mixed import mixed
from engines.quantize.qdq import activations
from engines.quantize.settings import BEST, Settings
from engines.quantize.store import Store, hash_of, key_of
from engines.samples import Images

HELPS = 0.98  # of the distance moved, at most which smoothing has to leave to be taken


@dataclass(frozen=True)
class Calibrated:
    """A graph with the ranges of its activations.

    Attributes:
        model: FP32 graph, smoothed or not; both compute the same.
        thresholds: activation -> magnitude of the greatest level.
        about: for passport and report: data, method, hash, what was compared.
        key: of the choice that was made.
    """

    model: onnx.ModelProto
    thresholds: Mapping[str, float]
    about: dict[str, Any]
    key: str


def calibrated(
    model: onnx.ModelProto,
    judge: Judge,
    images: Images,
    settings: Settings,
    store: Store,
    about: str,
    say: Callable[[str], None],
) -> Calibrated:
    """Calibrate a graph, by the method that moves the default INT8 graph least where several are compared.

    Raises UserError for images of another shape, or values that are not finite.
    """
    facts: dict[str, Any] = {"data": images.data, "samples": images.count, **images.about}
    kind = settings.lowest
    if kind is None:
        return Calibrated(model, {}, facts | {"method": "none: nothing is quantised"}, "none")
    pictures = np.concatenate(list(tqdm(images.batches(BATCH), desc="read calibration images", leave=False)))
    facts["images_sha256"] = hash_of(pictures)
    ranges = _Ranges(judge, pictures, kind, store, about)
    methods = METHODS if settings.method == BEST else (settings.method,)
    rows = []
    plain = ranges.of(model, "plain")
    for method in tqdm(methods, desc="compare methods", leave=False):
        rows.append(ranges.row(model, "plain", method, plain[method], len(methods) > 1 or settings.smooth is None))
    best = min(rows, key=lambda row: row["loss"]["moved_mm"] if row["loss"] else 0.0)
    method, chosen, thresholds, smoothed = best["method"], model, plain[best["method"]], False
    if settings.smooth is not False:
        other = smoothed_graph(model, pictures)
        found = ranges.of(other, "smoothed")
        row = ranges.row(other, "smoothed", method, found[method], True)
        rows.append(row)
        if settings.smooth or row["loss"]["moved_mm"] < HELPS * best["loss"]["moved_mm"]:
            chosen, thresholds, smoothed = other, found[method], True
    for row in rows:
        if row["loss"]:
            say(f"calibration {row['method']}, {row['graph']}: default layers move {row['loss']['moved_mm']:.3f} mm")
    facts |= {"method": method, "smoothed": smoothed, "compared": rows}
    return Calibrated(chosen, thresholds, facts, key_of(ranges.key, method, smoothed))


def smoothed_graph(model: onnx.ModelProto, images: NDArray[np.float32]) -> onnx.ModelProto:
    """Return the graph with outliers of activations moved into weights."""
    from engines.quantize.smooth import smooth

    return smooth(model, _batches(images))


@dataclass
class _Ranges:
    judge: Judge
    images: NDArray[np.float32]
    kind: str
    store: Store
    about: str

    def __post_init__(self) -> None:
        self.key = key_of(self.about, "ranges", self.kind, hash_of(self.images))

    def of(self, model: onnx.ModelProto, name: str) -> dict[str, dict[str, float]]:
        """Return thresholds by method."""

        def measure() -> dict[str, dict[str, float]]:
            tensors = activations(model, node_names(quantisable(model)))
            with tqdm(total=len(self.images), desc=f"calibrate, {name}", leave=False) as bar:
                seen = calibrate(model, tensors, _batches(self.images, bar))
            return {method: {t: m.threshold(method) for t, m in seen.items()} for method in METHODS}

        return self.store.remember(key_of(self.key, name, METHODS), measure)

    def row(
        self, model: onnx.ModelProto, name: str, method: str, thresholds: Mapping[str, float], wanted: bool
    ) -> dict[str, Any]:
        """Return what the default layers lose with these thresholds, None where nothing is compared."""

        def measure() -> dict[str, float | None]:
            choice = {layer.name: self.kind for layer in default_layers(model)}
            return asdict(self.judge.loss_of(mixed(model, choice, thresholds)))

        key = key_of(self.key, name, method, "default layers")
        loss = asdict(Loss.from_dict(self.store.remember(key, measure))) if wanted else None
        return {"graph": name, "method": method, "loss": loss}


def _batches(images: NDArray[np.float32], bar: Any = None) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]
        if bar is not None:
            bar.update(len(images[start : start + BATCH]))
