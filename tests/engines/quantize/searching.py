"""What tests of the search share: a tiny network with the ranges of its activations, and samples with meshes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from engines.quantize.calibrate import calibrate
from engines.quantize.layers import Layer, node_names, quantisable
from engines.quantize.loss import Judge
from engines.quantize.mixed import mixed
from engines.quantize.qdq import activations
from metro_edge.bundle import Bundle
from training.data.shards import ShardedPeople, people_shards

COUNT = 12


@dataclass
class Network:
    """A network to search.

    Attributes:
        bundle: it lies in.
        model: FP32 graph.
        layers: what can be quantised.
        thresholds: of all activations that layers read.
        images, truth: COUNT samples.
        judge: of them.
    """

    bundle: Bundle
    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    thresholds: dict[str, float]
    images: np.ndarray
    truth: np.ndarray
    judge: Judge

    def make(self, model: onnx.ModelProto, choice: Mapping[str, str]) -> onnx.ModelProto:
        return mixed(model, choice, self.thresholds)

    def all(self, precision: str) -> dict[str, str]:
        return {layer.name: precision for layer in self.layers}


def network_of(converted) -> Network:
    folder = people_shards(converted.data, converted.spec, seed=4, count=COUNT, workers=1)
    people = ShardedPeople(folder, converted.spec)
    items = [people[i] for i in range(COUNT)]
    images = np.stack([item["image"].numpy() for item in items])
    truth = np.stack([item["vertices"].numpy() for item in items])
    bundle = converted.bundle
    model = onnx.load_from_string(bundle.onnx_bytes("fp32"))
    layers = quantisable(model)
    seen = calibrate(model, activations(model, node_names(layers)), [converted.images(8), images, images])
    thresholds = {name: magnitudes.threshold("mse") for name, magnitudes in seen.items()}
    judge = Judge(model, bundle.spec, bundle.template, images, truth)
    return Network(bundle, model, layers, thresholds, images, truth, judge)
