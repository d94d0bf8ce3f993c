"""The networks that have a name: one plain function each, every number visible.

The `metro_*` presets of body and hand are the released ones (microsoft/MeshTransformer), so that released
weights fit them; they differ from the paper where config.py says so. `metro_edge` is this project's own.
"""

from __future__ import annotations

from collections.abc import Callable

from metro_edge.errors import UserError
from training.model.config import EncoderBlock, MetroConfig


def metro_body_hrnet_w64() -> MetroConfig:
    """Released body network: HRNet-W64, SMPL, 14 joints."""
    return _released_body("metro_body_hrnet_w64", backbone="hrnet_w64")


def metro_body_hrnet_w40() -> MetroConfig:
    """Released body network with the narrower HRNet-W40."""
    return _released_body("metro_body_hrnet_w40", backbone="hrnet_w40")


def metro_body_resnet50() -> MetroConfig:
    """Released body network with ResNet-50."""
    return _released_body("metro_body_resnet50", backbone="resnet50")


def metro_hand_hrnet_w64() -> MetroConfig:
    """Released hand network: HRNet-W64, MANO, 21 joints."""
    return MetroConfig(
        name="metro_hand_hrnet_w64",
        backbone="hrnet_w64",
        image_size=224,
        body="mano",
        joint_set="freihand21",
        vertex_levels=(195, 778),
        token_mode="global",
        blocks=(
            EncoderBlock(hidden=1024, layers=4, heads=4, ffn=4096, output=512),
            EncoderBlock(hidden=256, layers=4, heads=4, ffn=1024, output=128),
            EncoderBlock(hidden=64, layers=4, heads=4, ffn=256, output=3),
        ),
        camera_from="joints_vertices",
        camera_hidden=150,
        upsampling=("dense",),
    )


def metro_edge() -> MetroConfig:
    """The default network of this project: EfficientNet-Lite0 and a third of METRO's tokens.

    The backbone was made for INT8 on small devices (ReLU6, no squeeze-excite); its 1280-channel head
    convolution, which serves classification, is left out.
    """
    return MetroConfig(
        name="metro_edge",
        backbone="tf_efficientnet_lite0",
        backbone_feature="last_stage",
        image_size=160,
        body="anny",
        joint_set="h36m14",
        vertex_levels=(146, 1227, 13718),
        token_mode="grid",
        blocks=(
            EncoderBlock(hidden=256, layers=2, heads=4, ffn=1024, output=128),
            EncoderBlock(hidden=128, layers=2, heads=4, ffn=512, output=64),
            EncoderBlock(hidden=64, layers=2, heads=4, ffn=256, output=3),
        ),
        camera_from="vertices",
        camera_hidden=128,
        camera_image=True,
        dropout=0.0,  # a few epochs over generated people: it underfits rather than overfits
        upsampling=("dense", "sparse"),
        sparse_neighbours=8,
    )


def _released_body(name: str, backbone: str) -> MetroConfig:
    return MetroConfig(
        name=name,
        backbone=backbone,
        image_size=224,
        body="smpl",
        joint_set="h36m14",
        vertex_levels=(431, 1723, 6890),
        token_mode="grid",
        blocks=(
            EncoderBlock(hidden=1024, layers=4, heads=4, ffn=3072, output=512),
            EncoderBlock(hidden=256, layers=4, heads=4, ffn=3072, output=128),
            EncoderBlock(hidden=128, layers=4, heads=4, ffn=3072, output=3),
        ),
        camera_from="vertices",
        camera_hidden=250,
        upsampling=("dense", "dense"),
    )


PRESETS: dict[str, Callable[[], MetroConfig]] = {
    function.__name__: function
    for function in (
        metro_edge,
        metro_body_hrnet_w64,
        metro_body_hrnet_w40,
        metro_body_resnet50,
        metro_hand_hrnet_w64,
    )
}


def preset(name: str) -> MetroConfig:
    """Return the preset called `name`; raises UserError for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"unknown network preset {name!r}; known: {', '.join(PRESETS)}")
    return PRESETS[name]()
