"""The Lightning module: METRO, its losses with masked vertex modelling, its optimiser and its validation in mm."""

from __future__ import annotations

import logging
import math
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor, nn

from metro_edge.errors import UserError
from metro_edge.metrics import METRIC_NAMES, mesh_errors, mpjpe, pa_mpjpe
from metro_edge.template import BodyTemplate
from training.checkpoint import build_model
from training.config import FitConfig, OptimConfig
from training.distill import Distiller, captured
from training.losses import MetroLoss
from training.nonfinite import describe, finite_weights, offending, rows
from training.start import start_weights

log = logging.getLogger(__name__)


class MetroModule(lightning.LightningModule):
    """Trains the network of a FitConfig; its hyper-parameters, stored in checkpoints, are the whole FitConfig.

    Args:
        config: of the run.
        start: fill the network with what the configuration starts from; not needed where a checkpoint follows.

    Raises:
        UserError: weights to start from, or a teacher, that do not fit.
    """

    def __init__(self, config: FitConfig, start: bool = True) -> None:
        super().__init__()
        self.save_hyperparameters(config.to_dict())
        self.config = config
        self.template: BodyTemplate = config.template
        self.model = build_model(config)
        if start and (report := start_weights(self.model, config)):
            rank_zero_info(report)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.loss = MetroLoss(self.template, config.spec.joints, config.losses)
        self.distiller = Distiller(config, self.model, self.loss.regress) if config.distill.teacher else None
        self.skipped = 0  # samples of this process whose loss was not finite
        self._validation: list[NDArray[np.float64]] = []

    def forward(self, images: Tensor) -> Any:
        """Predict; see Metro.forward."""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def on_train_start(self) -> None:
        """Keep the backbone's batch-norm statistics; a run resumed within an epoch does not start that epoch."""
        self._freeze_batch_norm()

    def on_train_epoch_start(self) -> None:
        """Keep the backbone's batch-norm statistics as pretrained where the configuration says so."""
        self._freeze_batch_norm()

    def _freeze_batch_norm(self) -> None:
        if self.config.optim.freeze_batch_norm:
            for module in self.model.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Make masks and dropout a function of seed, epoch, batch and process, so that resuming repeats them."""
        entropy = (self.config.optim.seed, self.current_epoch, batch_idx, self.global_rank)
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Predict with masked tokens and return the loss."""
        mask = self.model.sample_mask(len(batch["image"])).to(batch["image"].device)
        terms = self._terms(batch, mask)
        if not torch.isfinite(terms["loss"]):
            terms = self._terms_without_bad(batch, mask)
        self.log("train/loss", terms["loss"], prog_bar=True)
        for name, value in terms.items():
            if name != "loss":
                self.log(f"train/{name}", value)
        return terms["loss"]

    def _terms(self, batch: dict[str, Any], mask: Tensor) -> dict[str, Tensor]:
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        if self.distiller is None:
            return self.loss(self.model(images, mask=mask), batch)
        with captured(self.model.backbone) as features:
            output = self.model(images, mask=mask)
        terms, taught = self.loss(output, batch), self.distiller(output, features[0], batch["image"])
        return {
            **terms,
            **{f"distill_{name}": value for name, value in taught.items()},
            "loss": terms["loss"] + taught["loss"],
        }

    def _terms_without_bad(self, batch: dict[str, Any], mask: Tensor) -> dict[str, Tensor]:
        """Return the terms of the samples whose own loss is finite; raise UserError unless skipping was asked for."""
        where = f"at step {self.global_step} of epoch {self.current_epoch}"
        if not finite_weights(self.model):
            raise UserError(
                f"the network's weights are no longer finite {where}: the gradient was not; lower optim.lr or "
                "optim.clip_norm, or use optim.precision fp32, and resume from the last checkpoint"
            )
        training = self.model.training
        self.model.eval()  # single samples are no batch to take statistics of
        bad = offending(lambda i: self._terms(rows(batch, i), mask[i])["loss"], len(mask))
        self.model.train(training)
        self._freeze_batch_norm()
        names = describe(batch, bad or list(range(len(mask))))
        if not bad or not self.config.optim.skip_non_finite:
            what = "samples" if bad else "no single sample is to blame; the batch is"
            raise UserError(
                f"the loss is not finite {where}; {what}: {names}. Mend or remove them, or set optim.skip_non_finite"
            )
        self.skipped += len(bad)
        log.warning("the loss is not finite %s; left out: %s (%d so far)", where, names, self.skipped)
        good = [i for i in range(len(mask)) if i not in bad]
        if good:
            return self._terms(rows(batch, good), mask[good])
        # Every parameter needs a gradient, if of nothing: other processes wait for it.
        return {"loss": torch.stack([p.sum() for p in self.parameters() if p.requires_grad]).sum() * 0}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Collect errors per sample, by the evaluation protocol."""
        self._validation.append(self._errors(self(batch["image"]).vertices[-1].float().cpu().numpy(), batch))

    def _errors(self, predicted: NDArray[np.float32], batch: dict[str, Any]) -> NDArray[np.float64]:
        """Return (N, metrics) metres: of meshes where labelled, else of labelled joints; NaN where undefined."""
        errors = np.full((len(predicted), len(METRIC_NAMES)), np.nan)
        meshes, joints = ((batch[name] > 0).cpu().numpy() for name in ("has_vertices", "has_joints"))
        if meshes.any():
            truth = batch["vertices"].cpu().numpy()[meshes]
            found = mesh_errors(predicted[meshes], truth, self.template, self.config.model.joint_set)
            errors[meshes] = np.stack([getattr(found, name) for name in METRIC_NAMES], 1)
        if "joints_confidence" in batch:
            joints &= (batch["joints_confidence"] > 0).all(1).cpu().numpy()
        if (only := joints & ~meshes).any():
            regressed = self.template.joints(self.config.model.joint_set, predicted[only])
            truth = batch["joints"].cpu().numpy()[only]
            errors[only, METRIC_NAMES.index("mpjpe")] = mpjpe(regressed, truth, self.config.spec.joints)
            errors[only, METRIC_NAMES.index("pa_mpjpe")] = pa_mpjpe(regressed, truth)
        return errors

    def on_validation_epoch_end(self) -> None:
        """Log the means over labelled samples, in mm, over all processes, each sample once."""
        errors = np.concatenate([np.empty((0, len(METRIC_NAMES))), *self._validation])
        self._validation.clear()
        sums = [*np.nansum(errors, 0), *(~np.isnan(errors)).sum(0), self.skipped]
        gathered = torch.as_tensor(self.all_gather(torch.tensor(sums, dtype=torch.float32, device=self.device)))
        *totals, skipped = gathered.reshape(-1, len(sums)).double().sum(0).tolist()
        counts = dict(zip(METRIC_NAMES, totals[len(METRIC_NAMES) :], strict=True))
        if counts["mpjpe"] == 0:
            raise UserError("no validation sample has a mesh or 3D joints: there is nothing to validate by")
        for name, total in zip(METRIC_NAMES, totals, strict=False):
            if counts[name]:
                value = torch.tensor(total / counts[name] * 1e3, dtype=torch.float32)
                self.log(f"validation/{name}_mm", value, prog_bar=True, rank_zero_only=True)
        if self.config.optim.skip_non_finite:
            self.log("train/skipped_samples", float(skipped), rank_zero_only=True)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the norm of the whole gradient, and keep one that is not finite away from the weights."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        self.log("train/gradient_norm", norm)
        # In fp16 the loss scaling meets such gradients on purpose and leaves the step out itself.
        if torch.isfinite(norm) or self.config.optim.precision == "fp16":
            return
        where = f"at step {self.global_step} of epoch {self.current_epoch}"
        if not self.config.optim.skip_non_finite:
            raise UserError(
                f"the gradient is not finite {where}, though the loss is: lower optim.lr, or set optim.skip_non_finite "
                "to leave such steps out"
            )
        log.warning("the gradient is not finite %s; the step is left out", where)
        optimizer.zero_grad(set_to_none=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the count of skipped samples, of all processes; Lightning calls this in each of them."""
        skipped = torch.tensor(self.skipped, device=self.device)
        checkpoint["skipped_samples"] = int(torch.as_tensor(self.all_gather(skipped)).sum())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        self.skipped = checkpoint.get("skipped_samples", 0) if self.global_rank == 0 else 0

    def configure_optimizers(self) -> Any:
        """AdamW over four groups (backbone or not, decayed or not), and the schedule in optimiser steps."""
        optim = self.config.optim
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            # Upsampling matrices start from a fit; decay would pull them away from it.
            decayed = parameter.ndim > 1 and "upsampling" not in name and "positions" not in name
            groups.setdefault((name.startswith("backbone."), decayed), []).append(parameter)
        if self.distiller is not None:
            groups[False, False] += self.distiller.parameters()
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": parameters,
                    "lr": optim.lr * (optim.backbone_lr_factor if backbone else 1.0),
                    "weight_decay": optim.weight_decay if decayed else 0.0,
                }
                for (backbone, decayed), parameters in groups.items()
            ],
            betas=(0.9, 0.98),
        )
        # Of the whole run, also where max_steps interrupts it, so that resuming follows the same schedule.
        steps: int = self.trainer.datamodule.steps_per_epoch * optim.epochs  # type: ignore[attr-defined]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: scheduled_factor(optim, step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def scheduled_factor(optim: OptimConfig, step: int, steps: int) -> float:
    """Return what multiplies the learning rate at an optimiser step of a run of `steps`."""
    if optim.schedule == "cosine" or step < optim.warmup_steps:
        return learning_rate_factor(step, steps, optim.warmup_steps)
    return optim.step_factor if optim.schedule == "step" and step >= optim.step_at * steps else 1.0


def learning_rate_factor(step: int, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Linear from 0 over `warmup` steps, then cosine from 1 to `floor` at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
