"""Pictures of predictions over validation images, after every validation: people look before they read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray

from metro_edge.backends import Outputs
from metro_edge.errors import PredictionError
from metro_edge.files import output_folder, replacing
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from metro_edge.video.overlay import draw_bodies
from training.crop_frames import body_in_crop, crop_frames


class PredictionPictures(lightning.Callback):
    """Writes a sheet of input and prediction side by side to `folder` and TensorBoard after each validation."""

    def __init__(self, folder: Path, count: int = 16) -> None:
        self.folder, self.count = folder, count

    def on_validation_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Draw the first samples of the validation set."""
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        people = trainer.val_dataloaders.dataset  # type: ignore[union-attr]
        images = torch.stack([people[i]["image"] for i in range(min(self.count, len(people)))])
        with torch.inference_mode():
            output = pl_module(images.to(pl_module.device))
        outputs = Outputs(*(t.float().cpu().numpy() for t in (output.camera, output.joints, output.vertices[-1])))
        sheet = prediction_sheet(images.numpy(), outputs, pl_module.config.spec, pl_module.template)
        output_folder(self.folder)
        with replacing(self.folder / f"step-{trainer.global_step:06d}.jpg") as partial:
            cv2.imwrite(str(partial), sheet)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(
                    "predictions", np.ascontiguousarray(sheet[..., ::-1]), trainer.global_step, dataformats="HWC"
                )


def prediction_sheet(
    images: NDArray[np.float32], outputs: Outputs, spec: ModelSpec, template: BodyTemplate, columns: int = 4
) -> NDArray[np.uint8]:
    """Return a picture (H, W, 3) uint8 BGR of network inputs (N, 3, S, S), each beside its predicted body."""
    tiles = []
    for i, crop in enumerate(crop_frames(images, spec)):
        try:
            drawn = draw_bodies(crop, [body_in_crop(outputs.row(i), spec.image_size, spec, template)])
        except PredictionError:  # an untrained camera may look backwards; a picture must not end the run
            drawn = np.zeros_like(crop)
        tiles.append(np.hstack([crop, drawn]))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)])
