"""The network for inference alone: first the trained modules in their trained order, then what the folds make of them.

A fold replaces a module by one that computes the same from fewer or other products. Whatever no fold has touched is
the trained module itself, shared with the network that was trained, which no fold changes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metro_edge.errors import UserError
from metro_edge.spec import KNOWN_OUTPUTS, OUTPUT_NAMES
from metro_edge.template import BodyTemplate
from training.model import Metro
from training.model.encoder import Encoder as TrainedEncoder
from training.model.encoder import EncoderLayer as TrainedLayer
from training.model.metro import CameraHead
from training.model.upsampling import DenseUpsampling, SparseUpsampling


def constant(values: Tensor) -> nn.Parameter:
    """Return values as a parameter that is never trained; it shares their memory."""
    return nn.Parameter(values.detach(), requires_grad=False)


class Affine(nn.Module):
    """x (..., in) @ weight (in, out) + bias (out,): a graph keeps such a weight, and so its name, as it is."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = constant(weight)
        self.bias = None if bias is None else constant(bias)

    @classmethod
    def of(cls, linear: nn.Module) -> Affine:
        """Return the same map as a torch Linear, or an Affine itself."""
        if isinstance(linear, Affine):
            return linear
        assert isinstance(linear, nn.Linear)
        return cls(linear.weight.t().contiguous(), linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        y = x @ self.weight
        return y if self.bias is None else y + self.bias


class AffineUpsampling(Affine):
    """An Affine across points instead of coordinates: (N, in, 3) -> (N, out, 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map points (N, in, 3) to (N, out, 3)."""
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Tokens(nn.Module):
    """Feature map (N, C, h, w) -> tokens (N, T, 3 + C), the template's x, y, z first; (N, T, C) without them."""

    template: Tensor | None

    def __init__(self, count: int, template: Tensor | None, mixer: nn.Conv1d | None) -> None:
        super().__init__()
        self.count = count
        self.register_buffer("template", template)
        self.mixer = mixer

    def forward(self, feature_map: Tensor) -> Tensor:
        """Mix the map's positions into tokens, or repeat its mean for every token."""
        if self.mixer is not None:
            image = self.mixer(feature_map.flatten(2).transpose(1, 2))
        else:
            image = feature_map.mean(dim=(2, 3))[:, None].expand(-1, self.count, -1)
        if self.template is None:
            return image
        return torch.cat([self.template.expand(image.shape[0], -1, -1), image], dim=2)


class Positions(nn.Module):
    """Feature map (N, C, h, w) -> its positions (N, h * w, C), or their mean (N, 1, C)."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled

    def forward(self, feature_map: Tensor) -> Tensor:
        """List the map's positions, or average them."""
        if self.pooled:
            return feature_map.mean(dim=(2, 3))[:, None]
        return feature_map.flatten(2).transpose(1, 2)


class Layer(nn.Module):
    """Self-attention and feed-forward part of a trained layer.

    Attributes:
        scale: what the attention scores are multiplied by; None where the query's weights contain it.
        heads_at_once: query, key and value are cut into heads by one reshape instead of three.
        query_bias: (heads, width of a head), added to the query alone; the joint product has no bias then.
    """

    def __init__(self, trained: TrainedLayer) -> None:
        super().__init__()
        self.heads = trained.heads
        self.scale: float | None = (trained.qkv.in_features // trained.heads) ** -0.5
        self.heads_at_once = False
        self.qkv: nn.Module = trained.qkv
        self.query_bias: nn.Parameter | None = None
        self.attention_output: nn.Module = trained.attention_output
        self.attention_norm = trained.attention_norm
        self.ffn_input: nn.Module = trained.ffn_input
        self.ffn_output: nn.Module = trained.ffn_output
        self.ffn_norm = trained.ffn_norm

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, hidden) to the same shape."""
        x = self.attention_norm(x + self.attention_output(self._attend(x)))
        return self.ffn_norm(x + self.ffn_output(F.gelu(self.ffn_input(x))))

    def _attend(self, x: Tensor) -> Tensor:
        # The products are written out: the exporter's form of the fused kernel reshapes and scales once more.
        if self.heads_at_once:
            split = self.qkv(x).unflatten(2, (3 * self.heads, -1)).split(self.heads, dim=2)
        else:
            split = tuple(part.unflatten(2, (self.heads, -1)) for part in self.qkv(x).chunk(3, dim=2))
        query, key, value = split  # each (N, T, heads, width)
        if self.query_bias is not None:
            query = query + self.query_bias
        scores = query.transpose(1, 2) @ key.permute(0, 2, 3, 1)
        if self.scale is not None:
            scores = scores * self.scale
        return (scores.softmax(dim=-1) @ value.transpose(1, 2)).transpose(1, 2).flatten(2)


class Encoder(nn.Module):
    """One block: tokens (N, T, inputs) -> (N, T, output).

    Attributes:
        positions: (T or more, hidden), added to the projected input.
        residual_constant: (T, output) added to the residual; None without.
    """

    def __init__(self, trained: TrainedEncoder) -> None:
        super().__init__()
        self.input: nn.Module = trained.input
        self.positions = constant(trained.positions)
        self.residual: nn.Module = trained.residual
        self.residual_constant: nn.Parameter | None = None
        self.layers = nn.ModuleList(Layer(layer) for layer in trained.layers)  # type: ignore[arg-type]
        self.output: nn.Module = trained.output

    def forward(self, features: Tensor) -> Tensor:
        """Map tokens to tokens of the block's output width."""
        x, residual = self.entry(features)
        for layer in self.layers:
            x = layer(x)
        return self.output(x) + residual

    def entry(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layers' input (N, T, hidden) and the residual (N, T, output)."""
        x = self.input(features) + self.positions[: features.shape[1]]
        residual = self.residual(features)
        return x, residual if self.residual_constant is None else residual + self.residual_constant


class TemplatePart(nn.Module):
    """What the template and the biases add to the projected tokens, still computed at every run: (T, hidden + output).

    Attributes:
        template: (T, 3).
        weight: Affine from x, y, z to both projections.
        mixer_bias: (T, 1) of the token convolution, and `column_sums` (hidden + output,) of the projection that its
            constant feature passes through; None where tokens are not mixed.
        positions: (T, hidden + output), zero for the residual.
    """

    def __init__(
        self, template: Tensor, weight: Affine, mixer_bias: Tensor | None, column_sums: Tensor, positions: Tensor
    ) -> None:
        super().__init__()
        self.template, self.positions = constant(template), constant(positions)
        self.weight = weight
        self.mixer_bias = None if mixer_bias is None else constant(mixer_bias)
        self.column_sums = constant(column_sums)

    def forward(self) -> Tensor:
        """Return the sum of all of them."""
        part = self.weight(self.template) + self.positions
        return part if self.mixer_bias is None else part + self.mixer_bias * self.column_sums


class ConstantPart(nn.Module):
    """A TemplatePart that was computed once: (T, hidden + output)."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = constant(value)

    def forward(self) -> Tensor:
        """Return it."""
        return self.value


class ProjectingEncoder(Encoder):
    """The first block, fed with the feature map's positions (N, P, C), or their mean (N, 1, C), instead of tokens.

    One product makes of each position what it adds to the input and to the residual of any token; only then are
    positions mixed into tokens.
    """

    def __init__(self, old: Encoder, projection: Affine, mixer: nn.Conv1d | None, part: nn.Module) -> None:
        nn.Module.__init__(self)
        self.projection, self.mixer, self.part = projection, mixer, part
        self.layers, self.output = old.layers, old.output
        self.widths = [old.positions.shape[1], projection.weight.shape[1] - old.positions.shape[1]]

    def entry(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Return the layers' input (N, T, hidden) and the residual (N, T, output)."""
        projected = self.projection(features)
        if self.mixer is not None:
            projected = self.mixer(projected)
        x, residual = (projected + self.part()).split(self.widths, dim=2)
        return x, residual


class Camera(nn.Module):
    """Points (N, P, 3), and pooled features (N, C) where the camera reads them, -> camera (N, 3), as trained."""

    def __init__(self, trained: CameraHead) -> None:
        super().__init__()
        self.coordinates: nn.Module = trained.coordinates
        self.points: nn.Module = trained.points
        self.output: nn.Module = trained.output
        self.image: nn.Module | None = trained.image

    def forward(self, points: Tensor, pooled: Tensor | None) -> Tensor:
        """Map points and pooled features to (s, tx, ty)."""
        camera = self.output(self.points(self.coordinates(points).squeeze(2)))
        return camera if self.image is None else camera + self.image(pooled)


class FoldedCamera(Affine):
    """Points (N, P, 3), and pooled features (N, C) where the camera reads them, -> camera (N, 3), in one product."""

    def forward(self, points: Tensor, pooled: Tensor | None) -> Tensor:  # type: ignore[override]
        """Map points and pooled features to (s, tx, ty)."""
        flat = points.flatten(1)
        return super().forward(flat if pooled is None else torch.cat([flat, pooled], dim=1))


class InferenceNetwork(nn.Module):
    """images (N, 3, S, S) -> the outputs asked for, as a tuple in their order.

    Attributes:
        outputs: names, of KNOWN_OUTPUTS.
        levels: vertices of the meshes before, between and after the upsampling steps.
        regressor: full mesh, or coarse one where `joints_from_coarse`, -> joints (N, J, 3).
    """

    def __init__(self, model: Metro, template: BodyTemplate, outputs: Sequence[str] = OUTPUT_NAMES) -> None:
        super().__init__()
        if unknown := [name for name in outputs if name not in KNOWN_OUTPUTS]:
            raise UserError(f"unknown output {unknown[0]!r}; known: {', '.join(KNOWN_OUTPUTS)}")
        if not outputs or len(set(outputs)) != len(outputs):
            raise UserError(f"outputs must be one or more different names, got {', '.join(outputs) or 'none'}")
        if model.training:
            raise UserError("the network is in training mode: call eval() before it is folded or exported")
        config = model.config
        self.outputs = tuple(outputs)
        self.image_size, self.num_joints, self.token_count = config.image_size, config.num_joints, config.num_tokens
        self.grid = config.token_mode == "grid"
        self.camera_from_joints = config.camera_from != "vertices"
        self.camera_image = config.camera_image
        self.backbone: nn.Module = model.backbone
        points = torch.cat([model.template_joints, model.template_vertices])
        self.tokens: nn.Module = Tokens(config.num_tokens, points, model.token_mixer if self.grid else None)
        self.encoders = nn.ModuleList(Encoder(encoder) for encoder in model.encoders)  # type: ignore[arg-type]
        self.camera: nn.Module = Camera(model.camera_head)
        self.upsampling = nn.ModuleList(model.upsampling)
        self.levels = config.vertex_levels
        self.joints_from_coarse = False
        self.regressor: nn.Module = nn.Identity()
        if self.wants_mesh_joints:
            self.regressor = _regressor(template, config.joint_set, points)
        self.train(False)

    @property
    def wants_camera(self) -> bool:
        """Whether an output reads the camera."""
        return bool({"camera", "joints_px"} & set(self.outputs))

    @property
    def wants_mesh_joints(self) -> bool:
        """Whether an output reads the joints of the mesh."""
        return bool({"mesh_joints", "joints_px"} & set(self.outputs))

    @property
    def wants_full_mesh(self) -> bool:
        """Whether an output reads the full mesh."""
        return "vertices" in self.outputs or (self.wants_mesh_joints and not self.joints_from_coarse)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs that were asked for; nothing else is computed."""
        feature_map = self.backbone(images)
        features = self.tokens(feature_map)
        for encoder in self.encoders:
            features = encoder(features)
        joints, coarse = features.split([self.num_joints, self.token_count - self.num_joints], dim=1)
        made = {"joints": joints, "coarse": coarse}
        if self.wants_camera:
            points = features if self.camera_from_joints else coarse
            made["camera"] = self.camera(points, feature_map.mean(dim=(2, 3)) if self.camera_image else None)
        if self.wants_full_mesh:
            mesh = coarse
            for step in self.upsampling:
                mesh = step(mesh)
            made["vertices"] = mesh
        if self.wants_mesh_joints:
            made["mesh_joints"] = self.regressor(coarse if self.joints_from_coarse else made["vertices"])
        if "joints_px" in self.outputs:
            made["joints_px"] = self._project(made["camera"], made["mesh_joints"])
        return tuple(made[name] for name in self.outputs)

    def own_backbone(self) -> None:
        """Make the backbone's modules the network's own, so that they can be replaced; tensors stay shared."""
        tensors = (*self.backbone.parameters(), *self.backbone.buffers())
        self.backbone = copy.deepcopy(self.backbone, {id(tensor): tensor for tensor in tensors})

    def _project(self, camera: Tensor, joints: Tensor) -> Tensor:
        """Return joints (N, J, 3) on the crop, (N, J, 2) px counted from pixel centres: (s (x + t) + 1) S / 2 - 0.5."""
        half = self.image_size / 2
        return (camera[:, None, :1] * half) * (joints[..., :2] + camera[:, None, 1:]) + (half - 0.5)


def readable(network: InferenceNetwork) -> None:
    """Store the weights of all linear layers but the backbone's as (in, out), in place: the same numbers, turned."""
    for path, module in list(network.named_modules()):
        for name, child in list(module.named_children()):
            if path.startswith("backbone") or name == "backbone":
                continue
            if isinstance(child, DenseUpsampling):
                setattr(module, name, AffineUpsampling(child.weight.t().contiguous(), child.bias))
            elif isinstance(child, nn.Linear):
                setattr(module, name, Affine.of(child))


def _regressor(template: BodyTemplate, joint_set: str, like: Tensor) -> SparseUpsampling:
    matrix = template.regressors.get(joint_set)
    if matrix is None:
        raise UserError(
            f"body {template.name} has no regressor for joint set {joint_set!r}, which mesh_joints and joints_px need"
        )
    weights = torch.from_numpy(matrix.weights).to(like.dtype)
    regressor = SparseUpsampling(torch.from_numpy(matrix.indices.astype("int64")), weights)
    return regressor.requires_grad_(False)
