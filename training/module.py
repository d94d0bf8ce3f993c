"""The Lightning module: METRO, its losses with masked vertex modelling, its optimiser and its validation in mm."""

from __future__ import annotations

import math
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor, nn

from metro_edge.errors import UserError
from metro_edge.metrics import METRIC_NAMES, mesh_errors
from metro_edge.template import BodyTemplate
from training.checkpoint import build_model, load_checkpoint
from training.config import FitConfig
from training.losses import MetroLoss
from training.model.backbone import load_pretrained


class MetroModule(lightning.LightningModule):
    """Trains the network of a FitConfig; its hyper-parameters, stored in checkpoints, are the whole FitConfig."""

    def __init__(self, config: FitConfig) -> None:
        super().__init__()
        self.save_hyperparameters(config.to_dict())
        self.config = config
        self.template: BodyTemplate = config.template
        self.model = build_model(config)
        if config.optim.start_from:
            self._start_from(config.optim.start_from)
        elif config.optim.pretrained:
            load_pretrained(self.model.backbone)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.loss = MetroLoss(self.template, config.spec.joints, config.losses)
        self._validation: list[np.ndarray] = []

    def _start_from(self, path: str) -> None:
        source = load_checkpoint(path)
        if source.config.model.to_dict() | {"name": ""} != self.config.model.to_dict() | {"name": ""}:
            raise UserError(f"cannot start from {path}: it holds another architecture, {source.config.model.name!r}")
        self.model.load_state_dict(source.model.state_dict())

    def forward(self, images: Tensor) -> Any:
        """Predict; see Metro.forward."""
        return self.model(images.contiguous(memory_format=torch.channels_last))

    def on_train_epoch_start(self) -> None:
        """Keep the backbone's batch-norm statistics as pretrained where the configuration says so."""
        if self.config.optim.freeze_batch_norm:
            for module in self.model.backbone.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Predict with masked tokens and return the loss."""
        images = batch["image"].contiguous(memory_format=torch.channels_last)
        mask = self.model.sample_mask(len(images)).to(images.device)
        terms = self.loss(self.model(images, mask=mask), batch)
        self.log("train/loss", terms["loss"], prog_bar=True)
        for name, value in terms.items():
            if name != "loss":
                self.log(f"train/{name}", value)
        return terms["loss"]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Collect errors per sample, by the evaluation protocol."""
        output = self(batch["image"])
        errors = mesh_errors(
            output.vertices[-1].float().cpu().numpy(),
            batch["vertices"].cpu().numpy(),
            self.template,
            self.config.model.joint_set,
        )
        self._validation.append(np.stack([getattr(errors, name) for name in METRIC_NAMES], 1))

    def on_validation_epoch_end(self) -> None:
        """Log the means over samples, in mm, over all processes."""
        errors = torch.from_numpy(np.concatenate(self._validation)).float().to(self.device)
        self._validation.clear()
        sums = torch.cat([errors.sum(0), errors.new_tensor([len(errors)])])
        sums = torch.as_tensor(self.all_gather(sums)).reshape(-1, len(METRIC_NAMES) + 1).sum(0)
        for name, value in zip(METRIC_NAMES, sums[:-1] / sums[-1] * 1e3, strict=True):
            self.log(f"validation/{name}_mm", value, prog_bar=True, rank_zero_only=True)

    def configure_optimizers(self) -> Any:
        """AdamW over four groups (backbone or not, decayed or not), linear warm-up, cosine to a hundredth."""
        optim = self.config.optim
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            # Upsampling matrices start from a fit; decay would pull them away from it.
            decayed = parameter.ndim > 1 and "upsampling" not in name and "positions" not in name
            groups.setdefault((name.startswith("backbone."), decayed), []).append(parameter)
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
        _ = self.trainer.estimated_stepping_batches  # loads the data, which num_training_batches needs
        steps = int(self.trainer.num_training_batches) * optim.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(step, steps, optim.warmup_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def learning_rate_factor(step: int, steps: int, warmup: int, floor: float = 0.01) -> float:
    """Linear from 0 over `warmup` steps, then cosine from 1 to `floor` at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
