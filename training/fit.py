"""One training run: shards, Lightning's trainer, checkpoints, logs and pictures below one folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from metro_edge.errors import UserError
from training.config import FitConfig
from training.datamodule import PeopleData
from training.module import MetroModule
from training.pictures import PredictionPictures

LAST = "last.ckpt"
LIGHTNING_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


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
    data = PeopleData(config)
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
        precision=LIGHTNING_PRECISIONS[config.optim.precision],
        gradient_clip_val=config.optim.clip_norm,
        callbacks=[
            checkpoints,
            LearningRateMonitor(),
            PredictionPictures(output / "pictures"),
            TQDMProgressBar(20),
        ],
        logger=[
            CSVLogger(output, name="", version="csv"),
            TensorBoardLogger(output, name="", version="tensorboard"),
        ],
        val_check_interval=1.0 / config.optim.validations_per_epoch,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        enable_model_summary=False,
        log_every_n_steps=max(1, min(20, config.data.train_count // config.optim.batch_size)),
    )
    trainer.fit(module, datamodule=data, ckpt_path=last if resume else None, weights_only=True)
    return Path(checkpoints.best_model_path or last)


def _processes() -> dict[str, Any]:
    """Return the Trainer's arguments for the processes that torchrun announces in the environment."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world == 1:
        return {"accelerator": "auto", "devices": 1}
    return {"accelerator": "auto", "devices": local, "num_nodes": world // local, "strategy": "ddp"}
