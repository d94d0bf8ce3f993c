"""Files as METRO released them, filled with made weights, and bodies that fit them without SMPL's or MANO's data."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch

from metro_edge.template import BodyTemplate, SparseMatrix
from tests.reference_weights import REFERENCE, ReferenceState, reference_tensor
from training.model import EncoderBlock, Metro, MetroConfig, preset
from training.model.released import TEMPLATE_BUFFERS, released_names

# A hand network in all but size: the released parts with a ResNet-50, and two encoders of one narrow layer.
SMALL_HAND = dataclasses.replace(
    preset("metro_hand_hrnet_w64"),
    name="metro_hand_resnet50",
    backbone="resnet50",
    blocks=(
        EncoderBlock(hidden=128, layers=1, heads=4, ffn=128, output=64),
        EncoderBlock(hidden=32, layers=1, heads=4, ffn=64, output=3),
    ),
)

# A body network likewise, METRO's tokens and mesh levels as they are.
SMALL_BODY = dataclasses.replace(preset("metro_body_resnet50"), blocks=SMALL_HAND.blocks)


def released_shapes(config: MetroConfig) -> dict[str, tuple[int, ...]]:
    """Entry -> shape of the released form of a network, with entries that it does not use."""
    with torch.device("meta"):
        own = Metro.blank(config).state_dict()
    shapes = {}
    for name, value in own.items():
        if name in TEMPLATE_BUFFERS:
            continue
        names = released_names(name, config)
        shape = tuple(value.shape)
        shapes |= dict.fromkeys(names, (shape[0] // len(names), *shape[1:]) if len(names) > 1 else shape)
    for i, block in enumerate(config.blocks):
        shapes[f"trans_encoder.{i}.bert.embeddings.word_embeddings.weight"] = (10, block.hidden)
        shapes[f"trans_encoder.{i}.bert.pooler.dense.bias"] = (block.hidden,)
    return shapes


def released_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Entry -> deterministic values, such that the outputs are of human size and stand before the camera."""
    state = {name: torch.from_numpy(reference_tensor(name, tuple(shape))) for name, shape in shapes.items()}
    last = max(int(name.split(".")[1]) for name in shapes if name.startswith("trans_encoder."))
    for name in (f"trans_encoder.{last}.cls_head.weight", f"trans_encoder.{last}.residual.weight"):
        state[name] *= 0.1
    state["cam_param_fc3.weight"] *= 0.01
    state["cam_param_fc3.bias"] = torch.tensor([0.9, 0.0, 0.0])
    return state


def standing_state(config: MetroConfig, template: BodyTemplate, share: float = 0.01) -> dict[str, torch.Tensor]:
    """Entry -> values of a network that predicts the body at rest, and centimetres of what it sees in the picture.

    The encoders' residual paths hand the tokens' template coordinates on; the upsampling is the body's.

    Args:
        share: of what the encoders' layers add, about the standard deviation in metres.
    """
    state = released_state(released_shapes(config))
    for i in range(len(config.blocks)):
        prefix = f"trans_encoder.{i}."
        state[f"{prefix}residual.weight"] = torch.eye(*state[f"{prefix}residual.weight"].shape)
        state[f"{prefix}residual.weight"][3:] = 0
        state[f"{prefix}cls_head.weight"] = torch.from_numpy(
            share * reference_tensor(f"{prefix}cls_head.weight", tuple(state[f"{prefix}cls_head.weight"].shape))
        )
        for name in ("residual.bias", "cls_head.bias"):
            state[prefix + name] *= 0
    for i, (step, coarse) in enumerate(zip(template.upsampling, config.vertex_levels[:-1], strict=True), 1):
        name = f"upsampling{i if i > 1 else ''}"
        state[f"{name}.weight"] = torch.from_numpy(step.dense(coarse))
        state[f"{name}.bias"] *= 0
    return state


def write_reference(path: Path, network: str) -> np.lib.npyio.NpzFile:
    """Write the state dictionary that the reference outputs of a network belong to; returns those."""
    reference = np.load(REFERENCE / f"{network}.npz")
    released = ReferenceState(network, int(reference["seed"]))
    torch.save({name: torch.from_numpy(released[name]) for name in released}, path)
    return reference


def body_with(config: MetroConfig, joints: np.ndarray, coarse: np.ndarray) -> BodyTemplate:
    """A body of the network's mesh levels whose joints (J, 3) and coarse vertices (C, 3) are the given ones.

    Each joint is a vertex of its own, right after the coarse ones; all others lie about the origin.
    """
    counts = config.vertex_levels
    vertices = np.random.default_rng(0).normal(0, 0.3, (counts[-1], 3)).astype(np.float32)
    vertices[: counts[0]] = coarse
    vertices[counts[0] : counts[0] + len(joints)] = joints
    at = np.arange(counts[0], counts[0] + len(joints), dtype=np.int32)[:, None]
    steps = tuple(
        SparseMatrix((np.arange(fine)[:, None] % coarse_count).astype(np.int32), np.ones((fine, 1), np.float32))
        for coarse_count, fine in itertools.pairwise(counts)
    )
    faces = np.array([[0, 1, 2], [3, 4, 5]], np.int32)
    return BodyTemplate(
        name=config.body,
        vertices=vertices,
        faces=faces,
        level_vertices=tuple(np.arange(count, dtype=np.int32) for count in counts),
        level_faces=tuple(faces for _ in counts),
        upsampling=steps,
        regressors={config.joint_set: SparseMatrix(at, np.ones((len(joints), 1), np.float32))},
        licence="made for a test",
    )


def made_body(config: MetroConfig) -> BodyTemplate:
    """A body of the network's mesh levels, of human size, that is no body."""
    random = np.random.default_rng(1)
    return body_with(
        config, random.normal(0, 0.3, (config.num_joints, 3)), random.normal(0, 0.3, (config.vertex_levels[0], 3))
    )
