"""The architecture of a released METRO network, read from the shapes of its state dictionary.

Three numbers leave no trace in the shapes and are taken as released: 4 attention heads in every layer, images of 32
px per position of the feature map's side (7 x 7, hence 224 px, where the tokens are learnt from a grid; 224 px too
where they repeat the pooled feature), and the shares of dropout and masking, which matter only in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from metro_edge.errors import UserError
from training.model.config import EncoderBlock, MetroConfig

HEADS = 4
STRIDE = 32  # px of the image per position of the last feature map, of every backbone that METRO uses
IMAGE_SIZE = 224
JOINT_SETS = {14: "h36m14", 21: "freihand21"}
BODIES = {6890: "smpl", 778: "mano"}
KINDS = {"smpl": "body", "mano": "hand"}
HRNET_WIDTHS = (18, 30, 32, 40, 44, 48, 64)
# Blocks per stage -> torchvision's name.
RESNETS = {(3, 4, 6, 3): "resnet50", (3, 4, 23, 3): "resnet101", (3, 8, 36, 3): "resnet152"}
_HRNET_WIDTH = "backbone.stage4.0.branches.0.0.conv1.weight"  # its first dimension
_RESNET_STEM, _RESNET_STAGES = "backbone.0.weight", (4, 5, 6, 7)

Shapes = Mapping[str, tuple[int, ...]]


def config_from_released(shapes: Shapes) -> MetroConfig:
    """Return the configuration of the network that has these entries.

    Args:
        shapes: entry -> shape, as in a released state dictionary.

    Raises:
        UserError: an entry that says something of the architecture is missing or has a shape that fits none; the
            entries are named.
    """
    backbone = infer_backbone(shapes, "backbone.")
    levels = _levels(shapes)
    joints, token_mode, camera_from, image_size = _tokens(shapes, levels[0])
    body = BODIES.get(levels[-1])
    if body is None:
        known = ", ".join(f"{name} ({count})" for count, name in BODIES.items())
        raise UserError(f"the full mesh has {levels[-1]} vertices, of no body that METRO was released for: {known}")
    if joints not in JOINT_SETS:
        raise UserError(f"{joints} joints are no set that METRO was released with: {', '.join(map(str, JOINT_SETS))}")
    return MetroConfig(
        name=f"metro_{KINDS[body]}_{backbone}",
        backbone=backbone,
        image_size=image_size,
        body=body,
        joint_set=JOINT_SETS[joints],
        vertex_levels=levels,
        token_mode=token_mode,
        blocks=_blocks(shapes),
        camera_from=camera_from,
        camera_hidden=_shape(shapes, "cam_param_fc2.weight", 2)[0],
        upsampling=("dense",) * (len(levels) - 1),
        max_tokens=_shape(shapes, "trans_encoder.0.bert.position_embeddings.weight", 2)[0],
    )


def infer_backbone(shapes: Shapes, prefix: str = "") -> str:
    """Return timm's name of the HRNet, or of the ResNet in METRO's numbering, whose entries begin with `prefix`.

    Raises:
        UserError: the entries are of neither, or of a width or depth that is not known.
    """
    shapes = {f"backbone.{name.removeprefix(prefix)}": s for name, s in shapes.items() if name.startswith(prefix)}
    if _HRNET_WIDTH in shapes:
        width = shapes[_HRNET_WIDTH][0]
        if width not in HRNET_WIDTHS:
            raise UserError(f"{_HRNET_WIDTH} is of an HRNet of width {width}; known: {HRNET_WIDTHS}")
        return f"hrnet_w{width}"
    if _RESNET_STEM in shapes:
        depths = tuple(_count(shapes, f"backbone.{stage}.") for stage in _RESNET_STAGES)
        if depths not in RESNETS or "backbone.4.0.conv3.weight" not in shapes:
            raise UserError(f"backbone.4 to backbone.7 have {depths} blocks, of no ResNet that METRO uses")
        return RESNETS[depths]
    raise UserError(f"missing {_HRNET_WIDTH} (HRNet) or {_RESNET_STEM} (ResNet): the backbone cannot be told")


def describe(config: MetroConfig) -> str:
    """Return one line about an inferred configuration, which says what was not in the file."""
    widths = "/".join(str(block.hidden) for block in config.blocks)
    layers = "/".join(str(block.layers) for block in config.blocks)
    ffn = "/".join(str(block.ffn) for block in config.blocks)
    return (
        f"{config.name}: {config.backbone}, {config.num_joints} joints and {config.vertex_levels[0]} vertices as "
        f"tokens ({config.token_mode}), encoders {widths} wide with {layers} layers and inner widths {ffn}, meshes of "
        f"{', '.join(map(str, config.vertex_levels))} vertices; not in the file and taken as released: {HEADS} heads, "
        f"{config.image_size} px"
    )


def _levels(shapes: Shapes) -> tuple[int, ...]:
    fine, coarse = _shape(shapes, "upsampling.weight", 2)
    levels = [coarse, fine]
    while (name := f"upsampling{len(levels)}.weight") in shapes:
        fine, coarse = _shape(shapes, name, 2)
        if coarse != levels[-1]:
            raise UserError(f"{name} {shapes[name]} takes {coarse} vertices; the step before makes {levels[-1]}")
        levels.append(fine)
    return tuple(levels)


def _tokens(shapes: Shapes, coarse: int) -> tuple[int, str, str, int]:
    """Return the number of joints, the token mode, what the camera reads and the image size."""
    camera = "cam_param_fc2.weight"
    points = _shape(shapes, camera, 2)[1]
    mixer = "conv_learn_tokens.weight"
    if mixer in shapes:
        tokens, positions, _ = _shape(shapes, mixer, 3)
        side = math.isqrt(positions)
        if side * side != positions:
            raise UserError(f"{mixer} {shapes[mixer]} mixes {positions} positions, which are no square")
        if points not in (coarse, tokens):
            raise UserError(
                f"{camera} {shapes[camera]} reads {points} points; there are {tokens} tokens, {coarse} vertices"
            )
        return tokens - coarse, "grid", "vertices" if points == coarse else "joints_vertices", side * STRIDE
    if points <= coarse:
        raise UserError(
            f"missing {mixer}; without it {camera} must tell the number of joints, and {shapes[camera]} does not: it "
            f"reads {points} points, the coarse mesh has {coarse} vertices"
        )
    return points - coarse, "global", "joints_vertices", IMAGE_SIZE


def _blocks(shapes: Shapes) -> tuple[EncoderBlock, ...]:
    count = _count(shapes, "trans_encoder.")
    if not count:
        raise UserError("missing trans_encoder.*: this is no METRO network")
    blocks: list[EncoderBlock] = []
    for i in range(count):
        name = f"trans_encoder.{i}.bert."
        hidden, inputs = _shape(shapes, f"{name}img_embedding.weight", 2)
        if blocks and inputs != blocks[-1].output:
            raise UserError(
                f"{name}img_embedding.weight takes {inputs} features, encoder {i - 1} makes {blocks[-1].output}"
            )
        if hidden % HEADS:
            raise UserError(f"{name}img_embedding.weight is {hidden} wide, which {HEADS} heads do not divide")
        blocks.append(
            EncoderBlock(
                hidden=hidden,
                layers=max(1, _count(shapes, f"{name}encoder.layer.")),
                heads=HEADS,
                ffn=_shape(shapes, f"{name}encoder.layer.0.intermediate.dense.weight", 2)[0],
                output=_shape(shapes, f"trans_encoder.{i}.cls_head.weight", 2)[0],
            )
        )
    return tuple(blocks)


def _count(shapes: Shapes, prefix: str) -> int:
    """Return one more than the largest number that follows `prefix`, 0 without any."""
    numbers = {name[len(prefix) :].split(".", 1)[0] for name in shapes if name.startswith(prefix)}
    return max((int(number) + 1 for number in numbers if number.isdigit()), default=0)


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise UserError(f"missing {name}: the architecture cannot be told without it")
    shape = tuple(shapes[name])
    if len(shape) != dimensions or min(shape) < 1:
        raise UserError(f"{name} has shape {shape}; {dimensions} dimensions were expected")
    return shape
