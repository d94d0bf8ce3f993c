"""What a network computes: its operators, seen once on tensors that hold no memory, for one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")


@dataclass(frozen=True)
class Operation:
    """One operator.

    Attributes:
        kind: PyTorch's name of it, such as `convolution`.
        arguments: the tensors it reads, in order: a parameter or buffer by its path, others by a number after #.
        results: the tensors it made, likewise.
        macs: multiply-adds, see `engines.cost`.
    """

    kind: str
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    macs: int


class _Recorder(TorchDispatchMode):
    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.operations: list[Operation] = []
        self.alive: list[Any] = []  # a tensor's number is its address, so none may go before the end

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.alive.append((args, result))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        kind = func.overloadpacket.__name__
        self.operations.append(
            Operation(
                kind,
                tuple(self._name(leaf) for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)),
                tuple(self._name(leaf) for leaf in made),
                _macs(kind, args, made),
            )
        )
        return result

    def _name(self, tensor: Tensor) -> str:
        return self.names.get(id(tensor), f"#{id(tensor)}")


def operations(network: nn.Module, image_size: int) -> list[Operation]:
    """Return the operators that a network runs on one image (1, 3, S, S), in order."""
    real = dict(network.named_parameters()) | dict(network.named_buffers())
    state = {name: torch.empty_like(value, device="meta") for name, value in real.items()}
    image = torch.empty(1, 3, image_size, image_size, device="meta", dtype=next(iter(real.values())).dtype)
    recorder = _Recorder({id(value): name for name, value in state.items()})
    with torch.no_grad(), recorder:
        torch.func.functional_call(network, state, (image,))
    return recorder.operations


def macs(network: nn.Module, image_size: int) -> int:
    """Return the multiply-adds of a network for one image."""
    return sum(operation.macs for operation in operations(network, image_size))


def _macs(kind: str, args: Any, made: list[Tensor]) -> int:
    if kind == "convolution":
        weight = args[1]
        outputs = args[0].numel() if args[6] else made[0].numel()  # transposed: every input meets a whole kernel
        return outputs * weight[0].numel()
    if kind in _PRODUCTS:
        return made[0].numel() * args[-2].shape[-1]
    if "batch_norm" in kind or kind in ("mul", "mul_", "div", "div_"):
        return made[0].numel()
    return 0
