"""The order of samples: a function of seed and epoch, shared between processes, and resumable within an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from metro_edge.errors import UserError
from training.data.loading import PlainLoader


class EpochBatches(Sampler[list[int]]):
    """One process's batches of one epoch.

    All processes draw the same permutation; batch b of process r takes its samples [(b * world + r) * size, + size),
    so that what all processes take together in a step is what one process with batches `world` times as large takes.
    An epoch is a whole number of optimiser steps; the samples that are left over come in another epoch.

    Args:
        count: samples of the data set.
        size: samples per batch and process.
        seed, epoch: decide the permutation.
        accumulate: batches per optimiser step.
        rank, world: this process and how many there are.

    Attributes:
        start: batches of this epoch to leave out, those that a resumed run has already seen. `len` counts them.

    Raises:
        UserError: fewer samples than one optimiser step takes.
    """

    def __init__(
        self, count: int, size: int, seed: int, epoch: int, accumulate: int = 1, rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.size, self.seed, self.epoch, self.rank, self.world = count, size, seed, epoch, rank, world
        self.steps = count // (size * world * accumulate)
        if self.steps == 0:
            raise UserError(
                f"one step takes {size * world * accumulate} samples (batch_size {size}, {world} processes, "
                f"accumulate {accumulate}), there are {count} to train on: lower optim.batch_size or optim.accumulate"
            )
        self.batches = self.steps * accumulate
        self.start = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(self.count, generator=generator)  # as a list it would be five times as large
        for batch in range(self.start, self.batches):
            begin = (batch * self.world + self.rank) * self.size
            yield order[begin : begin + self.size].tolist()


class EpochLoader(PlainLoader):
    """Loads EpochBatches; its state, which Lightning keeps in checkpoints, is how far training is in the epoch.

    Args:
        dataset: a map-style data set.
        batches: of this epoch.
        done: returns how many of them training has finished; what workers have fetched ahead does not count.
        options: of PlainLoader.
    """

    def __init__(self, dataset: Dataset[Any], batches: EpochBatches, done: Callable[[], int], **options: Any) -> None:
        super().__init__(dataset, batch_sampler=batches, **options)
        self.batches, self.done = batches, done

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, its finished batches and the samples in each over all processes."""
        batches = self.batches
        return {"epoch": batches.epoch, "done": self.done(), "samples": batches.size * batches.world}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on within the epoch; raises UserError when batches were of another size then."""
        batches = self.batches
        if state["epoch"] != batches.epoch:
            return
        if state["done"] and state["samples"] != batches.size * batches.world:
            raise UserError(
                f"the checkpoint is {state['done']} batches of {state['samples']} samples into an epoch, this run has "
                f"batches of {batches.size * batches.world} (batch_size x processes): resume with the same"
            )
        batches.start = state["done"]


class Share(Sampler[int]):
    """Every `world`-th sample from `rank` on: processes share a data set without padding or repeating any."""

    def __init__(self, count: int, rank: int = 0, world: int = 1) -> None:
        self.indices = range(rank, count, world)

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)
