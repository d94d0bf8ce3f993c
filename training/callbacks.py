"""What accompanies a training run: its last checkpoint, averaged weights, times of validation, time per step."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint, TQDMProgressBar, WeightAveraging
from torch import Tensor

LOG_EVERY_STEPS = 20


class LastCheckpoint(Checkpoint):
    """Keeps `path` the newest state: after each validation, at the end of an epoch, and every so many steps.

    Stand after ModelCheckpoint in the list of callbacks, whose state then includes the validation.

    Args:
        path: of the file; replaced atomically, so that a kill at any moment leaves a whole one.
        every_steps: optimiser steps between two checkpoints, 0 for none but those named above.
    """

    def __init__(self, path: Path, every_steps: int = 0) -> None:
        self.path, self.every_steps = path, every_steps
        self._saved_step = -1

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Count from the step that a resumed run starts at."""
        self._saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when it is time, except where validation follows, which saves itself."""
        step, batches = trainer.global_step, batch_idx + 1
        # Within an accumulated step the step's number stands still: the gradients so far would be lost.
        if step == self._saved_step or batches % trainer.val_check_batch == 0:  # type: ignore[operator]
            return
        periodic = self.every_steps > 0 and step % self.every_steps == 0
        if periodic or step == trainer.max_steps or batches == trainer.num_training_batches:
            self._save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        partial = self.path.with_name(f".{self.path.name}.partial")
        trainer.save_checkpoint(partial, weights_only=False)  # with optimiser and progress; loading runs no code
        if trainer.is_global_zero:
            os.replace(partial, self.path)
        self._saved_step = trainer.global_step


class ValidationTimes(lightning.Callback):
    """Validates `per_epoch` times an epoch, always after a whole optimiser step; logs losses at least once an epoch."""

    def __init__(self, per_epoch: int) -> None:
        self.per_epoch = per_epoch

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Set the intervals, before Lightning reads them together with the data."""
        steps: int = trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
        trainer.val_check_interval = max(1, steps // self.per_epoch) * trainer.accumulate_grad_batches
        trainer.log_every_n_steps = max(1, min(LOG_EVERY_STEPS, steps))  # type: ignore[attr-defined]


def averaged_weights(decay: float) -> WeightAveraging:
    """Return the callback of an exponential moving average of the weights, which validation and checkpoints use.

    The decay grows with the number n of steps, (1 + n) / (10 + n), up to `decay`: short runs are not tied to their
    first weights. Checkpoints hold the average as the network and the trained weights beside it, for resuming.
    """

    def average(old: Tensor, new: Tensor, steps: Tensor | int) -> Tensor:
        if not torch.is_floating_point(old):
            return new  # counters, and the indices of sparse upsampling, which rounding would corrupt
        n = float(steps)
        return old.lerp(new.to(old.dtype), 1 - min(decay, (1 + n) / (10 + n)))

    return WeightAveraging(avg_fn=average)


class StepTimeBar(TQDMProgressBar):
    """Lightning's bar with the mean time per optimiser step since the run was started, validation left out."""

    def __init__(self, refresh_rate: int = 20) -> None:
        super().__init__(refresh_rate)
        self._seconds, self._batches, self._since = 0.0, 0, 0.0

    def on_train_start(self, trainer: lightning.Trainer, *args: Any) -> None:
        """Start the clock, and the bar too, which Lightning leaves blank in a run resumed within an epoch."""
        super().on_train_start(trainer, *args)
        self.train_progress_bar.total = trainer.num_training_batches
        self.train_progress_bar.set_description(f"Epoch {trainer.current_epoch}")
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add this batch, its loading included."""
        now = time.perf_counter()
        self._seconds, self._batches, self._since = self._seconds + now - self._since, self._batches + 1, now
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Go on after the validation."""
        super().on_validation_end(trainer, pl_module)
        self._since = time.perf_counter()

    @property
    def step_seconds(self) -> float:
        """Mean seconds per batch so far, 0 before the first."""
        return self._seconds / max(self._batches, 1)

    def get_metrics(self, trainer: lightning.Trainer, pl_module: Any) -> dict[str, Any]:
        """Return what the bar shows."""
        metrics = dict(super().get_metrics(trainer, pl_module))
        metrics.pop("v_num", None)
        return {"s/step": f"{self.step_seconds * trainer.accumulate_grad_batches:.3g}", **metrics}
