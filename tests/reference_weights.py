"""Weights and images that two implementations can agree on without a file.

Every tensor is a function of its released name, its shape and a seed; the outputs of the original METRO code
on them are in tests/data/reference/.
"""

import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).parent / "data" / "reference"


def reference_tensor(name: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return the float32 value of the entry `name` (int64 for a batch counter)."""
    kind = name.rsplit(".", 1)[-1]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    if kind == "running_var" or (kind == "weight" and len(shape) == 1 and "LayerNorm" in name):
        return random.uniform(0.8, 1.2, shape).astype(np.float32)
    if kind == "running_mean":
        return random.normal(0, 0.05, shape).astype(np.float32)
    if len(shape) == 1:
        batch_norm_scale = kind.endswith("weight")
        value = random.uniform(0.6, 0.8, shape) if batch_norm_scale else random.normal(0, 0.02, shape)
        return value.astype(np.float32)
    return (random.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def reference_images(batch: int, seed: int = 1) -> np.ndarray:
    """Return (batch, 3, 224, 224) float32 images, already normalised."""
    return np.random.RandomState(seed).normal(0, 1, (batch, 3, 224, 224)).astype(np.float32)


class ReferenceState(Mapping[str, np.ndarray]):
    """A released state dictionary whose entries are made when they are read."""

    def __init__(self, network: str, seed: int = 0) -> None:
        self.shapes = json.loads((REFERENCE / f"{network}.keys.json").read_text())
        self.seed = seed

    def __getitem__(self, name: str) -> np.ndarray:
        return reference_tensor(name, tuple(self.shapes[name]), self.seed)

    def __contains__(self, name: object) -> bool:
        return name in self.shapes  # Mapping's default would make the entry

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)
