"""The data of a training run, as Lightning wants it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader

from training.config import FitConfig
from training.data.loading import PlainLoader
from training.data.order import EpochBatches, EpochLoader, Share
from training.data.sets import MixedSet, open_sets
from training.data.shards import ShardedPeople, people_shards


class PeopleData(lightning.LightningDataModule):
    """The samples of a run: data sets by path, or generated people, whose shards are made when missing.

    The augmentation changes with the epoch.
    """

    people: ShardedPeople | MixedSet
    held_out: ShardedPeople | MixedSet

    def __init__(self, config: FitConfig) -> None:
        super().__init__()
        self.config = config
        self.batch_size, self.workers = config.optim.batch_size, config.data.workers
        # A process may have no validation sample when there are more processes than samples.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def prepare_data(self) -> None:
        """Make missing shards; Lightning calls this in one process and lets the others wait."""
        if not self.config.data.train_sets:
            self._folders()

    def setup(self, stage: str) -> None:
        """Open the shards or the data sets, in every process."""
        data = self.config.data
        if data.train_sets:
            self.people = self._open(data.train_sets, train=True)
            self.held_out = self._open(data.validation_sets, train=False)
            return
        train, held_out = self._folders()
        self.people = ShardedPeople(train, self.config.spec, train=True, seed=self.config.optim.seed)
        self.held_out = ShardedPeople(held_out, self.config.spec)

    def teardown(self, stage: str) -> None:
        """Say how many samples could not be used, where the configuration allows to step over them."""
        for people in (getattr(self, "people", None), getattr(self, "held_out", None)):
            report = people.skip_report() if isinstance(people, MixedSet) else ""
            if report:
                print(report, file=sys.stderr)

    def _open(self, paths: tuple[str, ...], train: bool) -> MixedSet:
        data, config = self.config.data, self.config
        return open_sets(
            paths,
            config.spec,
            config.template,
            data.smpl,
            train=train,
            seed=config.optim.seed,
            augmentation=data.augmentation,
            skip_bad=data.skip_bad,
        )

    def _folders(self) -> list[Path]:
        data, spec = self.config.data, self.config.spec
        return [
            people_shards(Path(data.folder), spec, seed=seed, count=count, workers=max(1, data.workers))
            for seed, count in ((data.train_seed, data.train_count), (data.validation_seed, data.validation_count))
        ]

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps of an epoch, known after `setup`."""
        return self._epoch_batches(0).steps

    def train_dataloader(self) -> DataLoader[Any]:
        """Return this epoch's loader: its order and augmentation are functions of seed and epoch alone."""
        epoch = self.trainer.current_epoch if self.trainer else 0
        self.people.set_epoch(epoch)  # before the workers start, which inherit it
        return EpochLoader(self.people, self._epoch_batches(epoch), self._batches_done, **self._options())

    def val_dataloader(self) -> DataLoader[Any]:
        """Return this process's share of the held-out samples, not augmented."""
        share = Share(len(self.held_out), *self._process())
        return PlainLoader(self.held_out, sampler=share, batch_size=self.batch_size, **self._options())

    def _epoch_batches(self, epoch: int) -> EpochBatches:
        accumulate, seed = self.config.optim.accumulate, self.config.optim.seed
        return EpochBatches(len(self.people), self.batch_size, seed, epoch, accumulate, *self._process())

    def _batches_done(self) -> int:
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready if self.trainer else 0

    def _process(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _options(self) -> dict[str, Any]:
        return {"num_workers": self.workers, "pin_memory": torch.cuda.is_available()}
