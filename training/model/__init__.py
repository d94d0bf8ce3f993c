"""The network: `Metro(preset("metro_edge"), template_joints, template_vertices, upsampling_init)`."""

from training.model.backbone import load_pretrained_lite0
from training.model.config import EncoderBlock, MetroConfig
from training.model.metro import Metro, MetroOutput
from training.model.presets import PRESETS, preset
from training.model.released import load_released, state_dict_from_released

__all__ = [
    "PRESETS",
    "EncoderBlock",
    "Metro",
    "MetroConfig",
    "MetroOutput",
    "load_pretrained_lite0",
    "load_released",
    "preset",
    "state_dict_from_released",
]
