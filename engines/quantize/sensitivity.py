"""What each layer loses by itself: it alone in INT8 (or FP16, FP8), all others in FP32, on held-out samples.

Only what lies behind a layer is run: the activations at the border before it are those of FP32 and are kept from layer
to layer, in the order of the graph. That halves the work at least, and the memory is that of one border.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from engines.quantize.layers import Layer
from engines.quantize.loss import NOT_FINITE_MM, Judge, Loss, session
from engines.quantize.store import Store, key_of
from engines.quantize.subgraph import Border, borders, part, typed
from metro_edge.spec import INPUT_NAME

Make = Callable[[onnx.ModelProto, Mapping[str, str]], onnx.ModelProto]
LARGE = 1e14  # multiply-adds of measuring every layer, beyond which groups come first: about 20 minutes on two cores


@dataclass(frozen=True)
class Item:
    """Layers that share one precision, mostly a single one.

    Attributes:
        name: of its first layer; of a group also how many more there are.
        layers: names.
        macs: multiply-adds for one image.
    """

    name: str
    layers: tuple[str, ...]
    macs: int


def single_items(layers: Sequence[Layer]) -> tuple[Item, ...]:
    """Return one item per layer."""
    return tuple(Item(layer.name, (layer.name,), layer.macs) for layer in layers)


def group_items(model: onnx.ModelProto, layers: Sequence[Layer], count: int = 32) -> tuple[Item, ...]:
    """Return items of neighbouring layers: those between two borders of the graph, at most `count` stretches of it."""
    places = {node.name: index for index, node in enumerate(model.graph.node)}
    starts = [border.index for border in borders(model, count)]
    found: dict[int, list[Layer]] = {}
    for layer in layers:
        stretch = int(np.searchsorted(starts, places[layer.nodes[0]], side="right"))
        found.setdefault(stretch, []).append(layer)
    return tuple(
        Item(
            group[0].name if len(group) == 1 else f"{group[0].name} and {len(group) - 1} more",
            tuple(layer.name for layer in group),
            sum(layer.macs for layer in group),
        )
        for group in found.values()
    )


def too_many(layers: Sequence[Layer], samples: int) -> bool:
    """Say whether measuring every layer by itself would take too long (LARGE)."""
    return sum(layer.macs for layer in layers) * samples * len(layers) / 2 > LARGE


class Sensitivities:
    """Measures items by themselves, with what was measured before kept in a store.

    Args:
        model: FP32 graph.
        judge: of it.
        layers: what can be quantised.
        make: graph or part of it, choice of some layers (others FP32) -> graph to run.
        store: of results.
        about: whatever the results depend on beside graph, item and precision: hashes of samples, thresholds.
    """

    def __init__(
        self, model: onnx.ModelProto, judge: Judge, layers: Sequence[Layer], make: Make, store: Store, about: str
    ) -> None:
        self.model, self.judge, self.make, self.store, self.about = typed(model), judge, make, store, about
        self.nodes = {layer.name: layer.nodes for layer in layers}
        self.places = {node.name: index for index, node in enumerate(model.graph.node)}
        self.borders = borders(model)

    def measure(self, items: Iterable[Item], precision: str) -> dict[str, Loss]:
        """Return the loss of each item at a precision, by its name; shows progress."""
        wanted = sorted(items, key=self._place)
        keys = {item.name: key_of(self.about, "alone", item.layers, precision) for item in wanted}
        missing = [item for item in wanted if keys[item.name] not in self.store]
        with tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc=f"{precision} alone", leave=False) as bar:
            walk = _Walk(self.model, self.judge, self.borders)
            for item in missing:
                border = max((b for b in self.borders if b.index <= self._place(item)), key=lambda b: b.index)
                walk.go_to(border)
                loss = self.judge.loss(walk.results(self.make, dict.fromkeys(item.layers, precision)))
                self.store.put(keys[item.name], asdict(loss))
                bar.update()
        return {item.name: Loss.from_dict(self.store.get(keys[item.name])) for item in wanted}

    def _place(self, item: Item) -> int:
        return min(self.places[node] for layer in item.layers for node in self.nodes[layer])


class _Walk:
    """Goes from border to border with the activations that FP32 has there, per batch."""

    def __init__(self, model: onnx.ModelProto, judge: Judge, all_borders: Sequence[Border]) -> None:
        self.model, self.judge = model, judge
        self.border = all_borders[0]
        self.values: list[dict[str, NDArray]] = [{INPUT_NAME: batch} for batch in judge.batches]
        self._rest: tuple[onnx.ModelProto, list[int]] | None = None

    def go_to(self, border: Border) -> None:
        """Run FP32 up to a later border."""
        if border.index == self.border.index:
            return
        kept = [name for name in border.tensors if name in self.border.tensors]
        made = [name for name in border.tensors if name not in kept]
        run = session(part(self.model, self.border.tensors, made))
        self.values = [
            {name: values[name] for name in kept} | dict(zip(made, run(values), strict=True)) for values in self.values
        ]
        self.border, self._rest = border, None

    def results(self, make: Make, choice: Mapping[str, str]) -> list[list[NDArray]]:
        """Run what lies behind the border with a choice; returns the whole graph's outputs per batch."""
        if self._rest is None:
            behind = {name for node in self.model.graph.node[self.border.index :] for name in node.output}
            places = [place for place, name in enumerate(self.judge.outputs) if name in behind]
            names = [self.judge.outputs[place] for place in places]
            self._rest = part(self.model, self.border.tensors, names), places
        graph, places = self._rest
        run = session(make(graph, choice))
        found = []
        for values, reference in zip(self.values, self.judge.reference, strict=True):
            outputs = list(reference)
            for place, output in zip(places, run(values), strict=True):
                outputs[place] = output
            found.append(outputs)
        return found


def harms(losses: Mapping[str, Loss], metric: str) -> dict[str, float]:
    """Return what each item is expected to cost, in mm of the metric, above 0 and fit to be added up.

    The error of a point grows by about d^2 / 2e when it is moved by a small d that has nothing to do with its error
    e: so losses add up as squares of distances do, and the distance moved, which is measured far more precisely
    than a difference of two errors, tells most of the loss. The estimate is the mean of both, weighted by their
    certainty; the one of the distance is taken to be right within its own size. For the metric `moved` it is the
    square alone, on a scale of mm.
    """
    squares = {name: min(loss.moved_mm, NOT_FINITE_MM) ** 2 for name, loss in losses.items()}
    total = sum(squares.values())
    if metric == "moved":
        scale = 1.0 / np.sqrt(total) if total else 0.0
        return {name: max(scale * square, 1e-9) for name, square in squares.items()}
    whole = sum(max(loss.of(metric), 0.0) for loss in losses.values() if loss.moved_mm < NOT_FINITE_MM)
    scale = max(whole / total if total else 0.0, 1e-6)
    found = {}
    for name, loss in losses.items():
        prior, error = scale * squares[name], max(loss.error_of(metric), 1e-6)
        weight = prior**2 / (prior**2 + error**2)
        found[name] = max(weight * loss.of(metric) + (1 - weight) * prior, 0.1 * prior, 1e-9)
    return found
