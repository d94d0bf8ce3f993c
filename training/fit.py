"""One training run: its data, Lightning's trainer, checkpoints, logs and pictures below one folder."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from metro_edge.errors import UserError
from metro_edge.files import output_folder
from training.callbacks import LastCheckpoint, StepTimeBar, ValidationTimes, averaged_weights
from training.config import FitConfig
from training.datamodule import PeopleData
from training.module import MetroModule
from training.pictures import PredictionPictures
from training.start import check_resumable

LAST = "last.ckpt"
LIGHTNING_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def fit(config: FitConfig, output: Path, *, resume: bool = False, max_steps: int = -1) -> Path:
    """Train, and return the path of the best checkpoint by validation MPJPE.

    Runs on one process, or on several started by torchrun, whose environment it follows. A resumed run does what the
    unbroken one would have done: order, augmentation, masks and dropout are functions of seed, epoch and batch.

    Args:
        config: of the run.
        output: folder for checkpoints, `csv/metrics.csv` (`csv-2` after resuming), TensorBoard logs and pictures.
        resume: go on from `last.ckpt` in `output`.
        max_steps: stop after so many optimiser steps, whatever the epochs; -1 for no limit.

    Raises:
        UserError: fp16 without a GPU; `output` holds a run and `resume` is not set, or the other way round, or cannot
            be written; a checkpoint to resume from that is damaged or of another network; unusable data; a loss that
            is not finite.
        KeyboardInterrupt: the user interrupted; `last.ckpt` is whole.
    """
    last = output / "checkpoints" / LAST
    if resume and not last.is_file():
        raise UserError(f"nothing to resume: {last} does not exist")
    if not resume and last.is_file():
        raise UserError(f"{output} already holds a run: pass --resume to go on with it, or another --output")
    optim = config.optim
    if optim.precision == "fp16" and not torch.cuda.is_available():
        raise UserError("optim.precision fp16 needs a GPU, and none was found; use bf16 or fp32")
    if resume:
        check_resumable(last, config)
    output_folder(output)
    lightning.seed_everything(optim.seed, workers=True, verbose=False)
    best = ModelCheckpoint(
        dirpath=output / "checkpoints",
        filename="{epoch:02d}-{step}",
        monitor="validation/mpjpe_mm",
        save_top_k=1,
        save_on_train_epoch_end=False,
        enable_version_counter=False,  # what a killed run did after its last checkpoint is done again
    )
    trainer = lightning.Trainer(
        **_processes(),
        max_epochs=optim.epochs,
        max_steps=max_steps,
        precision=LIGHTNING_PRECISIONS[optim.precision],
        accumulate_grad_batches=optim.accumulate,
        gradient_clip_val=optim.clip_norm or None,
        callbacks=_callbacks(config, output, [best, LastCheckpoint(last, optim.checkpoint_every_steps)]),
        logger=[
            CSVLogger(output, name="", version=_new_folder(output, "csv")),
            TensorBoardLogger(output, name="", version="tensorboard"),
        ],
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module shares samples out itself, none of them twice
        reload_dataloaders_every_n_epochs=1,
        enable_model_summary=False,
    )
    # A checkpoint holds all that a new run starts from, whose files may be gone by now.
    module = MetroModule(config, start=not resume)
    try:
        trainer.fit(module, datamodule=PeopleData(config), ckpt_path=last if resume else None, weights_only=True)
    except SystemExit:
        if trainer.interrupted:  # Lightning closes down in order after Ctrl-C, and then exits by itself
            raise KeyboardInterrupt from None
        raise
    return Path(best.best_model_path or last)


def _callbacks(config: FitConfig, output: Path, checkpoints: list[Any]) -> list[Any]:
    callbacks: list[Any] = [
        ValidationTimes(config.optim.validations_per_epoch),
        LearningRateMonitor(),
        PredictionPictures(output / "pictures"),
    ]
    if config.optim.ema_decay > 0:
        # After the pictures, which show the averaged network as long as validation goes on.
        callbacks.append(averaged_weights(config.optim.ema_decay))
    return [*callbacks, StepTimeBar(), *checkpoints]


def _new_folder(output: Path, name: str) -> str:
    """Return `name`, or with a number where that exists: the logger empties the folder that it starts in."""
    numbered = (f"{name}-{k}" for k in itertools.count(2))
    return next(n for n in itertools.chain([name], numbered) if not (output / n).exists())


def _processes() -> dict[str, Any]:
    """Return the Trainer's arguments for the processes that torchrun announces in the environment."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if world == 1:
        return {"accelerator": "auto", "devices": 1}
    return {"accelerator": "auto", "devices": local, "num_nodes": world // local, "strategy": "ddp"}
