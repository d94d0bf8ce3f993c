"""Starting values for training: an untrained METRO predicts its template body, upright in the crop."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from training.model.encoder import Encoder
    from training.model.metro import Metro

BERT_STD = 0.02  # Devlin et al. 2019
XYZ_STD = 0.001  # noise on the path that carries the template's coordinates
INITIAL_SCALE = 0.9  # crop coordinates per metre: a standing adult of 1.7 m fills three quarters of the crop


def initialise(model: Metro) -> None:
    """Initialise everything but the backbone and the upsampling matrices, in place.

    Linear layers and positions follow BERT: normal with standard deviation 0.02, biases 0. Two choices are
    ours. The residual maps pass the first three features, the template's x, y, z, through every block, so
    that training starts from the template instead of from noise of half a metre. The camera starts at scale
    0.9 with no shift; its weights keep PyTorch's wider draw (the last ones a tenth of it), because three
    linear maps of 0.02 in a row would hardly pass a gradient.
    """
    for encoder in cast("list[Encoder]", model.encoders):
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=BERT_STD)
                nn.init.zeros_(module.bias)
        nn.init.normal_(encoder.positions, std=BERT_STD)
        with torch.no_grad():
            encoder.output.weight[:3].normal_(std=XYZ_STD)
            encoder.residual.weight[:3].normal_(std=XYZ_STD)
            encoder.residual.weight[:3, :3] = torch.eye(3)
    if hasattr(model, "token_mixer"):
        nn.init.zeros_(cast(torch.Tensor, model.token_mixer.bias))
    head = model.camera_head
    with torch.no_grad():
        for layer in (head.coordinates, head.points, head.output):
            layer.bias.zero_()
        head.output.weight.mul_(0.1)
        head.output.bias[0] = INITIAL_SCALE
        if head.image is not None:
            head.image.weight.zero_()
            head.image.bias.zero_()
