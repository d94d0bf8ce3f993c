"""A small network with every kind of part, converted once per session from a real checkpoint on generated people."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from engines.convert import Settings, convert
from engines.export import export_onnx
from engines.fold import fold
from engines.simplify import simplify
from metro_edge.bundle import Bundle
from metro_edge.spec import ModelSpec
from training.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from training.config import FitConfig
from training.data.shards import ShardedPeople, people_shards
from training.model import Metro

TINY = {
    "name": "tiny",
    "model": {
        "preset": "metro_edge",
        "name": "tiny",
        "backbone": "test_resnet",
        "backbone_feature": "final",
        "image_size": 64,
        "blocks": [
            {"hidden": 128, "layers": 1, "heads": 2, "ffn": 256, "output": 128},
            {"hidden": 64, "layers": 1, "heads": 2, "ffn": 64, "output": 3},
        ],
        "camera_hidden": 16,
    },
}
LOOSE = {"int8": 200.0}  # the weights are random, so what INT8 loses means nothing


def randomised(config: FitConfig, seed: int = 0) -> Metro:
    """A network none of whose parameters or running statistics has a value that an exporter could drop."""
    torch.manual_seed(seed)
    model = build_model(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "upsampling" not in name:
                value.add_(0.02 * torch.randn_like(value))
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
    return model


@dataclass(frozen=True)
class Converted:
    """A checkpoint, the bundle made of it and the samples it was verified on."""

    checkpoint: Path
    bundle: Bundle
    model: Metro
    spec: ModelSpec
    graph: onnx.ModelProto  # simplified, FP32
    data: Path

    def images(self, count: int) -> np.ndarray:
        folder = people_shards(self.data, self.spec, seed=2, count=8, workers=1)
        people = ShardedPeople(folder, self.spec)
        return np.stack([people[i]["image"].numpy() for i in range(count)])


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Converted:
    folder = tmp_path_factory.mktemp("engines")
    config = FitConfig.from_dict(dict(TINY))
    save_checkpoint(folder / "tiny.ckpt", Checkpoint(randomised(config), config))
    checkpoint = load_checkpoint(folder / "tiny.ckpt")
    settings = Settings(
        calibration_samples=16, verify_samples=8, tolerances_mm=LOOSE, data=folder / "people", licence="CC0"
    )
    bundle = convert(folder / "tiny.ckpt", folder / "bundle", settings, say=lambda line: None)
    network, _ = fold(checkpoint.model, checkpoint.template)
    return Converted(
        checkpoint=folder / "tiny.ckpt",
        bundle=bundle,
        model=checkpoint.model,
        spec=config.spec,
        graph=simplify(export_onnx(network, config.spec, checkpoint.sha256)),
        data=folder / "people",
    )
