"""One network's search: what mixes of its layers lose and take, with everything that was measured kept in a store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict

import numpy as np
import onnx

from engines.quantize.costs import Costs
from engines.quantize.layers import Layer
from engines.quantize.loss import NOTHING, Judge, Loss
from engines.quantize.search import REFERENCE, Choice
from engines.quantize.sensitivity import Item
from engines.quantize.speed import Speed
from engines.quantize.store import Store, key_of

Graph = Callable[[Mapping[str, str]], onnx.ModelProto]


class NetworkProblem:
    """See engines.quantize.search.Problem.

    Args:
        items: what is chosen, each for one or more layers.
        precisions: that items may have, fp32 among them.
        layers: of the network.
        harms: precision -> item's name -> expected loss in mm; none for fp32.
        graph: choice of some layers (others FP32) -> whole graph.
        judge: of the search's samples.
        metric: of the budget.
        speed: where times come from.
        costs: of its units.
        store: of results.
        about: whatever losses depend on beside the choice.
        on_loss: called with each measured mix, its origin unknown here.
    """

    def __init__(
        self,
        items: Sequence[Item],
        precisions: Sequence[str],
        layers: Sequence[Layer],
        harms: Mapping[str, Mapping[str, float]],
        graph: Graph,
        judge: Judge,
        metric: str,
        speed: Speed,
        costs: Costs,
        store: Store,
        about: str,
        on_loss: Callable[[Loss], None] = lambda loss: None,
    ) -> None:
        self._items, self.precisions, self.harms, self.graph = items, tuple(precisions), harms, graph
        self.judge, self.metric, self.speed, self.costs, self.store = judge, metric, speed, costs, store
        self.about, self.on_loss = about, on_loss
        self.table = costs.table(self.precisions)
        self._codes = {precision: code for code, precision in enumerate(self.precisions)}
        owner = {layer: place for place, item in enumerate(items) for layer in item.layers}
        self._owner = np.array([owner[unit.layer] for unit in costs.plan.units])
        self._layers = layers

    @property
    def items(self) -> Sequence[str]:
        """Names of the items."""
        return [item.name for item in self._items]

    def per_layer(self, choice: Choice) -> dict[str, str]:
        """Return the precision of each layer."""
        chosen = {name: p for item, p in zip(self._items, choice, strict=True) for name in item.layers}
        return {layer.name: chosen[layer.name] for layer in self._layers}

    def choice_of(self, layers: Mapping[str, str]) -> Choice:
        """Return the mix in which each item has the precision that all its layers have, else fp32."""
        found = []
        for item in self._items:
            kinds = {layers.get(name, REFERENCE) for name in item.layers}
            found.append(kinds.pop() if len(kinds) == 1 else REFERENCE)
        return tuple(found)

    def harm_mm(self, item: int, precision: str) -> float:
        """See Problem."""
        return self.harms[precision][self._items[item].name]

    def estimate_ms(self, choice: Choice) -> float:
        """See Problem."""
        codes = np.fromiter(map(self._codes.__getitem__, choice), np.int64, len(choice))
        return self.table.ms(codes[self._owner])

    def loss(self, choice: Choice) -> Loss:
        """Measure a mix on the search's samples."""
        layers = {name: p for name, p in self.per_layer(choice).items() if p != REFERENCE}
        if not layers:
            return self.nothing
        key = key_of(self.about, "mix", sorted(layers.items()))
        loss = Loss.from_dict(self.store.remember(key, lambda: asdict(self.judge.loss_of(self.graph(layers)))))
        self.on_loss(loss)
        return loss

    @property
    def nothing(self) -> Loss:
        """The loss of FP32 itself."""
        return Loss.from_dict({k: v for k, v in asdict(NOTHING).items() if self.judge.knows(k.split("_")[0])})

    def lost_mm(self, choice: Choice) -> float:
        """See Problem."""
        return self.loss(choice).of(self.metric)

    def times_ms(self, choices: Sequence[Choice]) -> list[float]:
        """See Problem."""
        return self.speed.times_ms(self.costs, [self.per_layer(choice) for choice in choices], self.graph)

    def confirmed_ms(self, choice: Choice) -> tuple[float, float]:
        """Return the times of FP32 and of a mix, as certain as they can be had."""
        return self.speed.confirmed_ms(self.costs, self.per_layer(choice), self.graph)
