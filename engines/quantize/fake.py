"""A network in PyTorch that rounds where its INT8 export does, and lets gradients through (straight-through estimator).

Weights are rounded per output channel, symmetrically, activations symmetrically per tensor, at the inputs of the same
layers and to the same levels. A batch norm that the export folds into its convolution multiplies output channels, and
so do the export's other folds of rounded weights: levels of the folded weight are levels of the weight.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from engines.fold import FOLDS, InferenceNetwork
from engines.fold.network import Affine
from engines.fold.network import Layer as InferenceLayer
from engines.graph import constants, consumers, value_of
from engines.quantize.layers import Layer, default_layers, weight_place
from engines.quantize.rounding import Rounded, bias_place
from engines.quantize.weights import FORMATS, along, weight_scale
from metro_edge.errors import UserError
from metro_edge.template import BodyTemplate
from training.model import Metro

OUTPUTS = ("camera", "joints", "coarse")
_LEVELS = 127
_SUMS = ("add", "add_", "__add__", "__iadd__", "__radd__")
_BACKBONE = ("backbone.model.", "backbone.")  # of a module's path here, and in a graph


def fake_quantised(values: Tensor, scale: float) -> Tensor:
    """Return an activation as its levels stand for it."""
    return torch.fake_quantize_per_tensor_affine(values, scale, 0, -_LEVELS, _LEVELS)


class FakeNetwork(nn.Module):
    """images (N, 3, S, S) -> camera (N, 3), joints (N, J, 3), coarse vertices (N, C, 3), as the INT8 network has them.

    Args:
        model: trained, in evaluation mode; it stays as it is.
        template: its body.
        graph: its FP32 export, with all folds.
        thresholds: per activation the magnitude of level 127, see `calibrate`.
        rounded: weights rounded on data, by node, which then stay as they are; without, each weight goes to its
            nearest level, however it changes.

    Attributes:
        model: a copy whose parameters this network computes with.

    Raises:
        UserError: a layer of the export has no counterpart here.
    """

    def __init__(
        self,
        model: Metro,
        template: BodyTemplate,
        graph: onnx.ModelProto,
        thresholds: Mapping[str, float],
        rounded: Mapping[str, Rounded] | None = None,
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval()
        self.network = InferenceNetwork(self.model, template, OUTPUTS)
        with torch.no_grad():
            FOLDS["grid_projection"].apply(self.network)
        for encoder in self.network.encoders:
            layers: Any = encoder.layers
            encoder.layers = nn.ModuleList(_Layer(layer) for layer in layers)
        layers = default_layers(graph)
        exported = _Exported(graph, thresholds, rounded or {})
        modules = {path.replace(*_BACKBONE, 1): module for path, module in self.network.named_modules()}
        products = [layer for layer in layers if layer.role != "residual"]
        if lost := [layer.name for layer in products if not isinstance(modules.get(layer.name), _Weighted)]:
            raise UserError(f"the INT8 export rounds {lost[0]}, which cannot be fine-tuned ({len(lost)} such layers)")
        self.weights = nn.ModuleList(exported.put_at(modules[layer.name], layer) for layer in products)
        sums = [exported.scales(layer) for layer in layers if layer.role == "residual"]
        self.network.backbone = _Summing(self.network.backbone, sums)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return camera, joints and coarse vertices."""
        return self.network(images)

    @torch.no_grad()
    def refresh(self) -> None:
        """Choose the scales of weights anew, as an export of the weights as they are now would."""
        for weight in self.weights:
            if isinstance(weight, _Nearest):
                weight.refresh()

    def parameters_of(self, what: str) -> list[nn.Parameter]:
        """Return what is trained: `shifts`, which are biases and the scales of norms, or `all`."""
        kept = (*self.model.backbone.parameters(), *self.model.encoders.parameters(), *self._camera())
        return [p for p in dict.fromkeys(kept) if what == "all" or p.ndim == 1]

    def _camera(self) -> Iterable[nn.Parameter]:
        return self.model.camera_head.parameters()

    def trained_state(self) -> dict[str, Tensor]:
        """Return a copy of the weights under the names of a network that does not round."""
        found = {}
        for name, value in self.model.state_dict().items():
            plain = name.replace(".parametrizations.weight.original", ".weight")
            if ".parametrizations." not in plain:
                found[plain] = value.detach().clone()
        return found


_Weighted = (nn.modules.conv._ConvNd, nn.Linear, Affine)


class _Exported:
    """What the export says of a layer: levels of its inputs, and of its weight."""

    def __init__(self, graph: onnx.ModelProto, thresholds: Mapping[str, float], rounded: Mapping[str, Rounded]) -> None:
        self.graph, self.thresholds, self.rounded = graph, thresholds, rounded
        self.known, self.readers = constants(graph), consumers(graph)
        self.nodes = {node.name: node for node in graph.graph.node}

    def scales(self, layer: Layer) -> list[float]:
        """Return what one level of each activation that a layer reads stands for."""
        node = self.nodes[layer.nodes[0]]
        names = [name for name in node.input if name and name not in self.known]
        return [float(FORMATS["int8"].scale(np.array(self.thresholds[name]))) for name in names]

    def put_at(self, module: nn.Module, layer: Layer) -> nn.Module:
        """Make a module round its input and its weight; returns what rounds the weight."""
        (scale,) = self.scales(layer)
        node = self.nodes[layer.nodes[0]]
        axis = 1 if isinstance(module, Affine) else 0
        weight: Any = module.weight
        fixed = self._fixed(node, weight.detach().numpy(), axis) if node.name in self.rounded else None
        made: nn.Module = fixed or _Nearest(weight, axis)
        module.register_forward_pre_hook(lambda _, inputs: (fake_quantised(inputs[0], scale), *inputs[1:]))
        if fixed is not None:
            module.register_forward_hook(lambda _, inputs, output: output - fixed.shift)
        parametrize.register_parametrization(module, "weight", made, unsafe=True)
        return made

    def _fixed(self, node: onnx.NodeProto, weight: NDArray[np.float32], axis: int) -> _Fixed:
        """Undo what folds did to a rounded weight: they multiplied its output channels."""
        place = weight_place(node, self.known)
        assert place is not None
        rounded = self.rounded[node.name]
        old = np.moveaxis(value_of(self.known[node.input[place[0]]]), place[1], 0).astype(np.float64)
        new = np.moveaxis(rounded.levels * along(rounded.scale, place[1], rounded.levels.ndim), place[1], 0)
        own = np.moveaxis(weight, axis, 0).astype(np.float64)
        rows = own.reshape(len(own), -1)
        # Products list their inputs alike, whichever side of them the weight is on.
        factor = (old.reshape(rows.shape) * rows).sum(1) / np.maximum((rows * rows).sum(1), 1e-30)
        factor = np.where(np.abs(factor) > 1e-12, factor, 1.0)
        values = np.moveaxis((new.reshape(rows.shape) / factor[:, None]).reshape(own.shape), 0, axis)
        corrected = bias_place(node, self.known, self.readers) is not None
        shift = rounded.shift / factor if corrected else np.zeros(len(own))
        last = node.op_type != "Conv" and place[0] == 1  # where the output's channels are: last, or behind the batch
        after = 0 if last else max(old.ndim - 2, 1)
        return _Fixed(values, shift.reshape(-1, *[1] * after))


class _Nearest(nn.Module):
    """Rounds a weight to its nearest levels."""

    scale: Tensor

    def __init__(self, weight: Tensor, axis: int) -> None:
        super().__init__()
        self.weight, self.axis = [weight], axis  # in a list: it is the module's parameter, not this one's
        self.register_buffer("scale", torch.zeros(weight.shape[axis]))
        self.register_buffer("zero", torch.zeros(weight.shape[axis], dtype=torch.int32))
        self.refresh()

    def refresh(self) -> None:
        """Choose the scales by the weight as it is."""
        found = weight_scale(self.weight[0].detach().numpy(), self.axis, "int8")
        self.scale.copy_(torch.from_numpy(found))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight as its levels stand for it."""
        zero: Any = self.zero
        return torch.fake_quantize_per_channel_affine(weight, self.scale, zero, self.axis, -_LEVELS, _LEVELS)


class _Fixed(nn.Module):
    """A weight that was rounded on data.

    Attributes:
        values: the weight.
        shift: what rounding moves the product's mean by, per channel of the output.
    """

    values: Tensor
    shift: Tensor

    def __init__(self, values: NDArray[np.floating], shift: NDArray[np.floating]) -> None:
        super().__init__()
        self.register_buffer("values", torch.from_numpy(values.astype(np.float32)))
        self.register_buffer("shift", torch.from_numpy(shift.astype(np.float32)))

    def forward(self, weight: Tensor) -> Tensor:
        """Return it in place of the weight."""
        return self.values


class _Layer(nn.Module):
    """An encoder layer in the form of the export: the value's bias passes into the output's, the key's is dropped."""

    def __init__(self, old: InferenceLayer) -> None:
        super().__init__()
        self.heads = old.heads
        self.qkv, self.attention_output = _WithoutBias(old.qkv), _WithoutBias(old.attention_output)
        self.ffn_input, self.ffn_output = old.ffn_input, old.ffn_output
        self.attention_norm, self.ffn_norm = old.attention_norm, old.ffn_norm

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (N, T, hidden) to the same shape."""
        x = self.attention_norm(x + self._attention(x))
        return self.ffn_norm(x + self.ffn_output(F.gelu(self.ffn_input(x))))

    def _attention(self, x: Tensor) -> Tensor:
        query_bias, _, value_bias = self.qkv.bias.chunk(3)
        query, key, value = self.qkv(x).chunk(3, dim=2)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query + query_bias, key, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        output = self.attention_output
        return output(mixed) + (output.exact @ value_bias + output.bias)


class _WithoutBias(nn.Linear):
    """A trained linear map whose bias is added elsewhere; it shares both."""

    def __init__(self, old: nn.Module) -> None:
        nn.Module.__init__(self)
        assert isinstance(old, nn.Linear) and old.bias is not None
        self.old = old
        self.in_features, self.out_features = old.in_features, old.out_features
        self.weight, self.bias = old.weight, old.bias

    @property
    def exact(self) -> Tensor:
        """The weight before it is rounded."""
        return self.old.weight

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        return F.linear(x, self.weight)


class _Summing(nn.Module):
    """A backbone whose sums of two feature maps round both; `scales` are theirs, in the order in which they run."""

    def __init__(self, inner: nn.Module, scales: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.inner, self.scales = inner, scales

    def forward(self, images: Tensor) -> Tensor:
        """Map images to features."""
        with _Sums(self.scales) as sums:
            features = self.inner(images)
        if sums.seen != len(self.scales):
            raise UserError(
                f"the INT8 export rounds {len(self.scales)} sums of feature maps, the network adds {sums.seen}: it "
                "cannot be fine-tuned"
            )
        return features


class _Sums(TorchFunctionMode):
    def __init__(self, scales: Sequence[Sequence[float]]) -> None:
        super().__init__()
        self.scales, self.seen = scales, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _SUMS and len(args) == 2 and not kwargs:
            first, second = args
            if isinstance(first, Tensor) and isinstance(second, Tensor) and first.ndim == second.ndim == 4:
                scales = self.scales[self.seen] if self.seen < len(self.scales) else None
                self.seen += 1
                if scales is not None:
                    pair = (fake_quantised(v, s) for v, s in zip(args, scales, strict=True))
                    return torch.add(*pair)
        return func(*args, **(kwargs or {}))
