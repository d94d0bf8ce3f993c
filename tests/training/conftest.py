"""A network small enough to train for a few steps in a test."""

from __future__ import annotations

from typing import Any

import pytest

from training.config import FitConfig


def tiny_values(**sections: Any) -> dict[str, Any]:
    """Plain values of a run whose network has the edge preset's parts in miniature."""
    block = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 16}
    return {
        "name": "tiny",
        "model": {
            "preset": "metro_edge",
            "name": "tiny",
            "image_size": 64,
            "blocks": [{**block, "output": 16}, {**block, "output": 3}],
        },
        **sections,
    }


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Plain values of a run over 32 samples that takes seconds; its shards are made once per session."""
    folder = tmp_path_factory.mktemp("people")
    return tiny_values(
        data={"folder": str(folder), "train_count": 32, "validation_count": 8, "workers": 0},
        optim={"epochs": 2, "batch_size": 8, "warmup_steps": 2, "lr": 3e-3, "pretrained": False},
    )


@pytest.fixture
def tiny_config() -> FitConfig:
    return FitConfig.from_dict(tiny_values())
