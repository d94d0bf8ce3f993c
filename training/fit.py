"""One training run: shards, Lightning's trainer, checkpoints, logs and pictures below one folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader

from metro_edge.errors import UserError
from training.config import FitConfig
from training.data.shards import ShardedPeople, people_shards
from training.module import MetroModule
from training.pictures import PredictionPictures

LAST = "last.ckpt"


def fit(config: FitConfig, output: Path, *, resume: bool = False, max_steps: int = -1) -> Path:
    """Train, and return the path of the best checkpoint by validation MPJPE.

    Runs on one process, or on several started by torchrun, whose environment it follows.

    Args:
        config: of the run.
        output: folder for checkpoints, `metrics.csv`, TensorBoard logs and pictures.
        resume: go on from `last.ckpt` in `output`.
        max_steps: stop after so many steps, whatever the epochs; -1 for no limit.

    Raises:
        UserError: `output` holds a run and `resume` is not set, or the other way round.
    """
    last = output / "checkpoints" / LAST
    if resume and not last.is_file():
        raise UserError(f"nothing to resume: {last} does not exist")
    if not resume and last.is_file():
        raise UserError(f"{output} already holds a run: pass --resume to go on with it, or another --output")
    lightning.seed_everything(config.optim.seed, workers=True, verbose=False)
    train, validation = _loaders(config)
    module = MetroModule(config)
    checkpoints = ModelCheckpoint(
        dirpath=output / "checkpoints",
        filename="{epoch:02d}-{step}",
        monitor="validation/mpjpe_mm",
        save_last=True,
        save_top_k=1,
        save_on_train_epoch_end=False,
    )
    trainer = lightning.Trainer(
        **_processes(),
        max_epochs=config.optim.epochs,
        max_steps=max_steps,
        gradient_clip_val=config.optim.clip_norm,
        callbacks=[checkpoints, LearningRateMonitor(), PredictionPictures(output / "pictures"), TQDMProgressBar(20)],
        logger=[CSVLogger(output, name="", version="csv"), TensorBoardLogger(output, name="", version="tensorboard")],
        val_check_interval=1.0 / config.optim.validations_per_epoch,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=20,
    )
    trainer.fit(module, train, validation, ckpt_path=last if resume else None, weights_only=True)
    return Path(checkpoints.best_model_path or last)


def _loaders(config: FitConfig) -> tuple[DataLoader[Any], DataLoader[Any]]:
    data, spec = config.data, config.spec
    folders = [
        people_shards(Path(data.folder), spec, seed=seed, count=count, workers=max(1, data.workers))
        for seed, count in ((data.train_seed, data.train_count), (data.validation_seed, data.validation_count))
    ]
    options: dict[str, Any] = {
        "batch_size": config.optim.batch_size,
        "num_workers": data.workers,
        "persistent_workers": data.workers > 0,
        "pin_memory": torch.cuda.is_available(),
    }
    train = ShardedPeople(folders[0], spec, train=True)
    return (
        DataLoader(train, shuffle=True, drop_last=len(train) >= config.optim.batch_size, **options),
        DataLoader(ShardedPeople(folders[1], spec, train=False), **options),
    )


def _processes() -> dict[str, Any]:
    """Return the Trainer's arguments for the processes that torchrun announces in the environment."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world == 1:
        return {"accelerator": "auto", "devices": 1}
    return {"accelerator": "auto", "devices": local, "num_nodes": world // local, "strategy": "ddp"}
