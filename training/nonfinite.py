"""Losses that are not finite: which samples are to blame, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SHOWN = 8  # names in one message


def rows(batch: dict[str, Any], chosen: list[int]) -> dict[str, Any]:
    """Return the samples `chosen` of a batch: of its tensors and of its lists."""
    return {
        name: value[chosen] if isinstance(value, Tensor) else [value[i] for i in chosen]
        for name, value in batch.items()
    }


@torch.no_grad()
def offending(loss: Callable[[list[int]], Tensor], count: int) -> list[int]:
    """Return the samples, of `count`, whose own loss is not finite; `loss` returns that of a list of samples."""
    return [i for i in range(count) if not bool(torch.isfinite(loss([i])))]


def describe(batch: dict[str, Any], chosen: list[int]) -> str:
    """Name samples of a batch by their `key`, or their place in it, and which of their entries are not finite."""
    keys = batch.get("key") or [f"sample {i} of the batch" for i in range(len(batch["image"]))]
    texts = []
    for i in chosen[:SHOWN]:
        wrong = [
            name
            for name, value in batch.items()
            if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value[i]).all()
        ]
        texts.append(f"{keys[i]} ({', '.join(wrong)} not finite)" if wrong else str(keys[i]))
    more = f" and {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
    return ", ".join(texts) + more


def finite_weights(model: nn.Module) -> bool:
    """Say whether every parameter is finite."""
    return all(bool(torch.isfinite(p).all()) for p in model.parameters())
