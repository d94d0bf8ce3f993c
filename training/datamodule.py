"""The data of a training run, as Lightning wants it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from training.config import FitConfig
from training.data.shards import ShardedPeople, people_shards


class PeopleData(lightning.LightningDataModule):
    """Generated people of a run: shards are made when missing, the augmentation changes with the epoch."""

    def __init__(self, config: FitConfig) -> None:
        super().__init__()
        self.config = config
        self.batch_size, self.workers = config.optim.batch_size, config.data.workers

    def prepare_data(self) -> None:
        """Make missing shards; Lightning calls this in one process and lets the others wait."""
        self._folders()

    def setup(self, stage: str) -> None:
        """Open the shards, in every process."""
        train, held_out = self._folders()
        self.people = ShardedPeople(train, self.config.spec, train=True, seed=self.config.optim.seed)
        self.held_out = ShardedPeople(held_out, self.config.spec)

    def _folders(self) -> list[Path]:
        data, spec = self.config.data, self.config.spec
        return [
            people_shards(Path(data.folder), spec, seed=seed, count=count, workers=max(1, data.workers))
            for seed, count in ((data.train_seed, data.train_count), (data.validation_seed, data.validation_count))
        ]

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this epoch's loader: its order and augmentation are functions of seed and epoch alone."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        self.people.set_epoch(epoch)  # before the workers start, which inherit it
        order = torch.Generator().manual_seed(self.people.seed + 1_000_003 * epoch)
        drop_last = len(self.people) >= self.batch_size
        return self._loader(self.people, shuffle=True, generator=order, drop_last=drop_last)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the held-out samples, not augmented."""
        return self._loader(self.held_out)

    def _loader(self, people: ShardedPeople, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            people,
            batch_size=self.batch_size,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            **options,
        )
