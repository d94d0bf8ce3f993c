"""A network small enough to run everywhere in milliseconds, with every kind of part."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from training.model import EncoderBlock, Metro, MetroConfig

TINY = MetroConfig(
    name="tiny",
    backbone="test_resnet",
    image_size=64,
    body="anny",
    joint_set="h36m14",
    vertex_levels=(20, 40, 90),
    token_mode="grid",
    blocks=(
        EncoderBlock(hidden=32, layers=2, heads=4, ffn=64, output=16),
        EncoderBlock(hidden=16, layers=1, heads=2, ffn=32, output=3),
    ),
    camera_from="vertices",
    camera_hidden=8,
    upsampling=("dense", "sparse"),
    sparse_neighbours=4,
)


def upsampling_matrices(config: MetroConfig, seed: int = 0) -> list:
    """Random starting matrices for the steps of `config`, rows summing to 1."""
    random = np.random.default_rng(seed)
    steps = []
    for kind, coarse, fine in zip(config.upsampling, config.vertex_levels[:-1], config.vertex_levels[1:], strict=True):
        k = config.sparse_neighbours if kind == "sparse" else coarse
        weights = random.random((fine, k), dtype=np.float32)
        weights /= weights.sum(1, keepdims=True)
        steps.append((random.integers(0, coarse, (fine, k)), weights) if kind == "sparse" else weights)
    return steps


def build(config: MetroConfig, seed: int = 0) -> Metro:
    """A network of `config` in evaluation mode with a random template of human size."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    joints = random.normal(0, 0.4, (config.num_joints, 3))
    vertices = random.normal(0, 0.4, (config.vertex_levels[0], 3))
    return Metro(config, joints, vertices, upsampling_matrices(config, seed)).eval()


@pytest.fixture(scope="session")
def tiny_config() -> MetroConfig:
    return TINY


@pytest.fixture
def tiny() -> Metro:
    return build(TINY)


@pytest.fixture
def build_metro() -> Callable[..., Metro]:
    return build


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(5))
