"""Levels for a search: calibration methods compared, smoothing and rounding of weights on data where they help."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
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
from engines.quantize.recipe import DATA, NEAREST
from engines.quantize.rounding import SAMPLES, Rounded, round_on_data
from engines.quantize.settings import BEST, Settings
from engines.quantize.store import Store, hash_of, key_of
from engines.samples import Images

HELPS = 0.98  # of the distance moved, at most which smoothing or rounding has to leave to be taken


WORDS = {NEAREST: "to the nearest level", DATA: "rounded on data"}


@dataclass(frozen=True)
class Calibrated:
    """A graph with the ranges of its activations.

    Attributes:
        model: FP32 graph, smoothed or not; both compute the same.
        thresholds: activation -> magnitude of the greatest level.
        rounded: weights rounded on data, by node; empty where each goes to its nearest level.
        about: for passport and report: data, method, hash, what was compared.
        key: of the choice that was made.
    """

    model: onnx.ModelProto
    thresholds: Mapping[str, float]
    rounded: Mapping[str, Rounded]
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
        return Calibrated(model, {}, {}, facts | {"method": "none: nothing is quantised"}, "none")
    pictures = np.concatenate(list(tqdm(images.batches(BATCH), desc="read calibration images", leave=False)))
    facts["images_sha256"] = hash_of(pictures)
    compared = _Compared(_Ranges(judge, pictures, kind, store, about), settings)
    chosen = compared.smoothed(model, compared.method(model))
    chosen = compared.rounded(chosen)
    for row in compared.rows:
        if row["loss"]:
            words = f"calibration {row['method']}, {row['graph']} graph, weights {WORDS[row['weights']]}"
            say(f"{words}: default layers move {row['loss']['moved_mm']:.3f} mm")
    facts |= {
        "method": chosen.method,
        "smoothed": chosen.smoothed,
        "rounding": chosen.weights,
        "compared": compared.rows,
    }
    key = key_of(compared.ranges.key, chosen.method, chosen.smoothed, chosen.weights)
    return Calibrated(chosen.model, chosen.thresholds, chosen.rounded, facts, key)


@dataclass(frozen=True)
class _Choice:
    model: onnx.ModelProto
    method: str
    thresholds: Mapping[str, float]
    smoothed: bool = False
    rounded: Mapping[str, Rounded] = field(default_factory=dict)
    moved_mm: float | None = None

    @property
    def graph(self) -> str:
        return "smoothed" if self.smoothed else "plain"

    @property
    def weights(self) -> str:
        return DATA if self.rounded else NEAREST


class _Compared:
    """Choices one after another, each measured on the default layers where there is anything to choose.

    Attributes:
        rows: what was measured, for the report.
    """

    def __init__(self, ranges: _Ranges, settings: Settings) -> None:
        self.ranges, self.settings = ranges, settings
        self.methods = METHODS if settings.method == BEST else (settings.method,)
        self.wanted = len(self.methods) > 1 or settings.smooth is None or settings.rounding is None
        self.rows: list[dict[str, Any]] = []

    def method(self, model: onnx.ModelProto) -> _Choice:
        """Return the method of choosing ranges that moves the mesh least."""
        plain = self.ranges.of(model, "plain")
        choices = [
            self.measured(_Choice(model, method, plain[method]))
            for method in tqdm(self.methods, desc="compare methods", leave=False)
        ]
        return min(choices, key=lambda choice: choice.moved_mm or 0.0)

    def smoothed(self, model: onnx.ModelProto, best: _Choice) -> _Choice:
        """Return the choice with outliers of activations moved into weights, where that helps."""
        if self.settings.smooth is False:
            return best
        other = smoothed_graph(model, self.ranges.images)
        thresholds = self.ranges.of(other, "smoothed")[best.method]
        return self.better(best, replace(best, model=other, thresholds=thresholds, smoothed=True), self.settings.smooth)

    def rounded(self, best: _Choice) -> _Choice:
        """Return the choice with weights rounded on data, where that helps."""
        if self.settings.rounding is False or self.ranges.kind != "int8":
            return best
        found = self.ranges.rounded(best.model, best.graph, best.method, best.thresholds)
        return self.better(best, replace(best, rounded=found), self.settings.rounding)

    def better(self, best: _Choice, other: _Choice, wanted: bool | None) -> _Choice:
        """Return `other` where it is wanted, or moves the mesh clearly less."""
        other = self.measured(other)
        if wanted or other.moved_mm is None or best.moved_mm is None:
            return other
        return other if other.moved_mm < HELPS * best.moved_mm else best

    def measured(self, choice: _Choice) -> _Choice:
        """Add the row of a choice, and its distance from FP32 where distances are wanted."""
        loss = self.ranges.loss(choice) if self.wanted else None
        row = {"graph": choice.graph, "method": choice.method, "weights": choice.weights}
        self.rows.append(row | {"loss": None if loss is None else asdict(loss)})
        return replace(choice, moved_mm=None if loss is None else loss.moved_mm)


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

    def rounded(
        self, model: onnx.ModelProto, name: str, method: str, thresholds: Mapping[str, float]
    ) -> dict[str, Rounded]:
        """Return the weights of all layers rounded on data, by node."""

        def measure() -> dict[str, NDArray[Any]]:
            images = list(_batches(self.images[:SAMPLES]))
            found = round_on_data(model, node_names(quantisable(model)), thresholds, images)
            return {f"{node}/{k}": v for node, one in found.items() for k, v in vars(one).items()}

        arrays = self.store.remember_arrays(key_of(self.key, name, method, "rounded"), measure)
        nodes = dict.fromkeys(name.rpartition("/")[0] for name in arrays)
        return {node: Rounded(*(arrays[f"{node}/{k}"] for k in ("levels", "scale", "shift"))) for node in nodes}

    def loss(self, choice: _Choice) -> Loss:
        """Return what the default layers lose."""

        def measure() -> dict[str, float | None]:
            layers = {layer.name: self.kind for layer in default_layers(choice.model)}
            return asdict(self.judge.loss_of(mixed(choice.model, layers, choice.thresholds, choice.rounded)))

        key = key_of(self.key, choice.graph, choice.method, choice.weights, "default layers")
        return Loss.from_dict(self.store.remember(key, measure))


def _batches(images: NDArray[np.float32], bar: Any = None) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(images), BATCH):
        yield images[start : start + BATCH]
        if bar is not None:
            bar.update(len(images[start : start + BATCH]))
