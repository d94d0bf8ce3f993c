"""The checkpoint in training/weights: it opens, says what was measured of it, and is the shipped network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from metro_edge.backends import open_session
from metro_edge.bundle import Bundle
from metro_edge.demo import DemoAssets
from metro_edge.preprocess import network_input
from training.checkpoint import load_checkpoint

PATH = Path(__file__).resolve().parents[2] / "training" / "weights" / "metro_edge.pt"


def test_it_predicts_what_the_shipped_bundle_does():
    checkpoint, bundle, assets = load_checkpoint(PATH), Bundle.load(), DemoAssets.load()
    assert PATH.stat().st_size < 25_000_000
    images = np.concatenate(
        [
            network_input(assets.picture, np.reshape(assets.picture_box, (1, 4)), bundle.spec),
            network_input(assets.clip[0], np.reshape(assets.boxes[0], (1, 4)), bundle.spec),
        ]
    )
    with torch.inference_mode():
        ours = checkpoint.model(torch.from_numpy(images)).vertices[-1].numpy()
    with open_session(bundle) as session:
        shipped = session.infer(images).mesh
    # The checkpoint holds float16 values; the bundle's convolutions were folded from others.
    assert 1000 * np.linalg.norm(ours - shipped, axis=-1).mean() < 3.0
    assert np.ptp(ours, axis=1).max() > 0.5  # metres: a body, not a point


def test_it_says_what_was_measured_of_it():
    metrics = load_checkpoint(PATH).metrics
    assert metrics["samples"] == 2000 and metrics["seed"] != metrics["train_seed"]
    errors = metrics["errors_mm"]
    assert errors["metro_edge"]["mpjpe"] < 0.6 * errors["mean body"]["mpjpe"]
