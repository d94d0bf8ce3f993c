"""METRO's transformer: BERT layers without embeddings or pooler, in blocks of shrinking width.

Paper: "Multi-Layer Transformer Encoder with Progressive Dimensionality Reduction". As released, the layers
normalise after each residual (post-norm, Devlin et al. 2019), the input is not normalised, positions are
learned, and each block adds a linear map of its input to its output.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.config import EncoderBlock

LAYER_NORM_EPS = 1e-12  # BERT's; far below what FP16 resolves, so exports normalise in FP32


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part with exact GELU, each followed by residual and LayerNorm."""

    def __init__(self, block: EncoderBlock, dropout: float) -> None:
        super().__init__()
        self.heads = block.heads
        self.qkv = nn.Linear(block.hidden, 3 * block.hidden)  # one product instead of three
        self.attention_output = nn.Linear(block.hidden, block.hidden)
        self.attention_norm = nn.LayerNorm(block.hidden, eps=LAYER_NORM_EPS)
        self.ffn_input = nn.Linear(block.hidden, block.ffn)
        self.ffn_output = nn.Linear(block.ffn, block.hidden)
        self.ffn_norm = nn.LayerNorm(block.hidden, eps=LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, return_attention: bool = False) -> tuple[Tensor, Tensor | None]:
        """Map tokens (N, T, hidden) to the same shape; attention (N, heads, T, T) on request, else None."""
        context, attention = self._attend(x, return_attention)
        x = self.attention_norm(x + self.dropout(self.attention_output(context)))
        inner = F.gelu(self.ffn_input(x))
        return self.ffn_norm(x + self.dropout(self.ffn_output(inner))), attention

    def _attend(self, x: Tensor, return_attention: bool) -> tuple[Tensor, Tensor | None]:
        query, key, value = (  # each (N, heads, T, hidden / heads)
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2)
        )
        attention = None
        if return_attention:  # the fused kernel never forms the map
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
            attention = scores.softmax(dim=-1)
            mixed = self.dropout(attention) @ value
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, dropout_p=self.dropout.p if self.training else 0.0
            )
        return mixed.transpose(1, 2).flatten(2), attention


class Encoder(nn.Module):
    """One block: input projection + positions -> layers -> output projection, plus a linear residual."""

    def __init__(self, inputs: int, block: EncoderBlock, max_tokens: int, dropout: float) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, block.hidden)
        self.positions = nn.Parameter(torch.zeros(max_tokens, block.hidden))
        self.layers = nn.ModuleList(EncoderLayer(block, dropout) for _ in range(block.layers))
        self.output = nn.Linear(block.hidden, block.output)
        self.residual = nn.Linear(inputs, block.output)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor, return_attention: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Map tokens (N, T, inputs) to (N, T, output); also the layers' attention maps when requested."""
        x = self.dropout(self.input(features) + self.positions[: features.shape[1]])
        attentions = []
        for layer in self.layers:
            x, attention = layer(x, return_attention)
            if attention is not None:
                attentions.append(attention)
        if self.output.out_features == 3:  # coordinates: bfloat16 would round a metre to 4 mm
            with full_precision(x):
                return self.output(x.float()) + self.residual(features.float()), attentions
        return self.output(x) + self.residual(features), attentions


def full_precision(like: Tensor) -> AbstractContextManager[object]:
    """Return a context that switches autocast off on the device of `like`, where it is on (not so in an export)."""
    device = like.device.type
    active = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if active else nullcontext()
