"""METRO: one image in, joints, a mesh at every level and a camera out (Lin et al., CVPR 2021).

A CNN makes a feature map; every joint and coarse vertex becomes a token of image features and its place in a
template body; encoders let all tokens attend to each other and shrink them to x, y, z; linear maps make the
finer meshes and the camera. Where the released code (microsoft/MeshTransformer) differs from the paper, the
configuration chooses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metro_edge.errors import UserError
from training.model.backbone import Backbone
from training.model.config import MetroConfig
from training.model.encoder import Encoder, full_precision
from training.model.init import initialise
from training.model.upsampling import make_upsampling


class MetroOutput(NamedTuple):
    """What the network predicts; metres in the camera frame (x right, y down, z away), near the root joint.

    Attributes:
        camera: (N, 3) as (s, tx, ty); crop coordinates in [-1, 1] are s * (x + tx), s * (y + ty).
        joints: (N, J, 3).
        vertices: per mesh level, coarse to full, (N, V_l, 3).
        attention: per transformer layer, first to last, (N, heads, J + C, J + C), rows summing to 1;
            None unless requested. Tokens are the joints, then the C coarse vertices.
    """

    camera: Tensor
    joints: Tensor
    vertices: tuple[Tensor, ...]
    attention: tuple[Tensor, ...] | None = None


class Metro(nn.Module):
    """The whole network.

    Args:
        config: the architecture.
        template_joints: (J, 3), metres, camera frame: the template body's joints, kept with the weights.
        template_vertices: (C, 3), its coarse vertices.
        upsampling_init: per upsampling step a starting matrix, see `make_upsampling`; sparse steps need one.

    Raises:
        UserError: arrays that do not fit the configuration, or an unknown backbone.
    """

    template_joints: Tensor
    template_vertices: Tensor

    def __init__(
        self,
        config: MetroConfig,
        template_joints: Any,
        template_vertices: Any,
        upsampling_init: Sequence[Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self._register_template("template_joints", template_joints, config.num_joints)
        self._register_template("template_vertices", template_vertices, config.vertex_levels[0])
        self.backbone = Backbone(config)
        height, width = self.backbone.grid_hw
        if config.token_mode == "grid":
            # Across positions, not channels: each token is its own weighted sum of the h * w feature vectors.
            self.token_mixer = nn.Conv1d(height * width, config.num_tokens, kernel_size=1)
        widths = [self.backbone.channels + 3, *(block.output for block in config.blocks)]
        self.encoders = nn.ModuleList(
            Encoder(inputs, block, config.max_tokens, config.dropout)
            for inputs, block in zip(widths[:-1], config.blocks, strict=True)
        )
        self.camera_head = CameraHead(
            config.vertex_levels[0] if config.camera_from == "vertices" else config.num_tokens,
            config.camera_hidden,
            self.backbone.channels if config.camera_image else 0,
        )
        self.upsampling = nn.ModuleList(_upsampling_steps(config, upsampling_init))
        initialise(self)

    @classmethod
    def blank(cls, config: MetroConfig) -> Metro:
        """Return a network with placeholders for template and neighbours, to load a state dictionary into."""
        k = config.sparse_neighbours
        neighbours = [
            (np.zeros((fine, k), np.int64), np.zeros((fine, k), np.float32)) if kind == "sparse" else None
            for kind, fine in zip(config.upsampling, config.vertex_levels[1:], strict=True)
        ]
        return cls(config, np.zeros((config.num_joints, 3)), np.zeros((config.vertex_levels[0], 3)), neighbours)

    @classmethod
    def from_state_dict(cls, config: MetroConfig, state: Mapping[str, Tensor]) -> Metro:
        """Rebuild a network from its configuration and `state_dict()`, with no body at hand.

        Raises:
            UserError: the state belongs to another architecture.
        """
        model = cls.blank(config)
        try:
            model.load_state_dict(dict(state))
        except RuntimeError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            shown = " ".join(lines[1:3] or lines)[:300]
            raise UserError(f"the weights do not fit the architecture {config.name!r}: {shown}") from None
        return model

    def forward(self, images: Tensor, mask: Tensor | None = None, return_attention: bool = False) -> MetroOutput:
        """Predict bodies.

        Args:
            images: (N, 3, S, S) normalised RGB.
            mask: (N, J + C) bool, True where masked vertex modelling hides the token; see `sample_mask`.
            return_attention: also return the attention maps, through a slower path.

        Raises:
            UserError: images of another size.
        """
        size = self.config.image_size
        if images.shape[1:] != (3, size, size):
            raise UserError(f"images have shape {tuple(images.shape)}; {self.config.name} takes (N, 3, {size}, {size})")
        feature_map = self.backbone(images)
        features = self._tokens(feature_map)
        if mask is not None:
            # As released, all of a hidden token goes, its template coordinates too: only its position
            # embedding is left to say which joint or vertex it stands for.
            features = features.masked_fill(mask[..., None].bool(), self.config.mvm_value)
        attentions: list[Tensor] = []
        for encoder in self.encoders:
            features, maps = encoder(features, return_attention)
            attentions += maps
        joints, coarse = features.split([self.config.num_joints, self.config.vertex_levels[0]], dim=1)
        points = coarse if self.config.camera_from == "vertices" else features
        vertices = [coarse]
        with full_precision(features):
            camera = self.camera_head(points, feature_map.float().mean(dim=(2, 3)))
            for step in self.upsampling:
                vertices.append(step(vertices[-1]))
        return MetroOutput(camera, joints, tuple(vertices), tuple(attentions) if return_attention else None)

    def sample_mask(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw what masked vertex modelling hides in a training batch (paper: "Masked Vertex Modeling").

        Per sample, a share uniform in [0, mvm_fraction) of the joints is hidden, and independently one of the
        coarse vertices; as released, the counts round down.

        Returns:
            (batch, J + C) bool on the generator's device (CPU without one), True where hidden.
        """
        device = generator.device if generator is not None else torch.device("cpu")
        parts = []
        for count in (self.config.num_joints, self.config.vertex_levels[0]):
            share = torch.rand(batch, 1, generator=generator, device=device) * self.config.mvm_fraction
            # A random permutation's ranks below k are a random subset of k tokens.
            ranks = torch.rand(batch, count, generator=generator, device=device).argsort(1).argsort(1)
            parts.append(ranks < (share * count).floor())
        return torch.cat(parts, dim=1)

    def _tokens(self, feature_map: Tensor) -> Tensor:
        """Make tokens (N, J + C, 3 + channels), template xyz first, of a feature map (N, channels, h, w)."""
        template = torch.cat([self.template_joints, self.template_vertices])
        if self.config.token_mode == "grid":
            image = self.token_mixer(feature_map.flatten(2).transpose(1, 2))
        else:
            image = feature_map.mean(dim=(2, 3))[:, None].expand(-1, len(template), -1)
        return torch.cat([template.expand(image.shape[0], -1, -1), image], dim=2)

    def _register_template(self, name: str, values: Any, rows: int) -> None:
        tensor = torch.as_tensor(values, dtype=torch.float32).clone()
        if tensor.shape != (rows, 3):
            raise UserError(
                f"{name} has shape {tuple(tensor.shape)}; {self.config.name} needs ({rows}, 3): "
                f"is this the template of {self.config.body!r} and {self.config.joint_set!r}?"
            )
        self.register_buffer(name, tensor)


class CameraHead(nn.Module):
    """Weak-perspective camera from predicted points: three linear maps in a row (as released).

    With `image_channels`, a linear map of the pooled image features (N, image_channels) is added.
    """

    def __init__(self, points: int, hidden: int, image_channels: int = 0) -> None:
        super().__init__()
        self.coordinates = nn.Linear(3, 1)
        self.points = nn.Linear(points, hidden)
        self.output = nn.Linear(hidden, 3)
        self.image = nn.Linear(image_channels, 3) if image_channels else None

    def forward(self, points: Tensor, image: Tensor) -> Tensor:
        """Map points (N, P, 3) and pooled features (N, C) to cameras (N, 3) as (s, tx, ty)."""
        camera = self.output(self.points(self.coordinates(points).squeeze(2)))
        return camera if self.image is None else camera + self.image(image)


def _upsampling_steps(config: MetroConfig, init: Sequence[Any] | None) -> list[nn.Module]:
    matrices = [None] * len(config.upsampling) if init is None else list(init)
    if len(matrices) != len(config.upsampling):
        raise UserError(
            f"upsampling_init has {len(matrices)} matrices; {config.name} has {len(config.upsampling)} steps"
        )
    levels = config.vertex_levels
    return [
        make_upsampling(kind, coarse, fine, config.sparse_neighbours, matrix)
        for kind, coarse, fine, matrix in zip(config.upsampling, levels[:-1], levels[1:], matrices, strict=True)
    ]
