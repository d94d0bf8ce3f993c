"""A training's latest and best state, on disk: one that was stopped goes on where it was."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from engines.quantize.fake import FakeNetwork
from metro_edge.errors import UserError
from metro_edge.files import replacing


class Kept:
    """The state of a training, on disk after every look at the samples that the best state is chosen by.

    Args:
        path: of the file, None for none; a state of the same key is taken up.
        key: of the run.
        network, optimizer: are brought to the state that is taken up.

    Attributes:
        step: of the latest look, None before the first.
        best: weights of the best state, under the trained network's names.
        first_mm, best_mm: distance from FP32 at the start and of the best state.

    Raises UserError when the file is no such state.
    """

    def __init__(self, path: Path | None, key: str, network: FakeNetwork, optimizer: torch.optim.Optimizer) -> None:
        self.path, self.key, self.network, self.optimizer = path, key, network, optimizer
        self.step: int | None = None
        self.best: dict[str, Tensor] = {}
        self.best_mm = self.first_mm = float("inf")
        if path is not None and path.is_file():
            self._read(path)

    @property
    def resumed(self) -> str:
        """What to say of a run that goes on."""
        return f"; goes on at step {self.step}, best so far {self.best_mm:.2f} mm" if self.step else ""

    def look(self, step: int, moved_mm: float) -> None:
        """Take note of a state, and keep it on disk."""
        if step == 0:
            self.first_mm = moved_mm
        if step == 0 or moved_mm < self.best_mm:
            self.best, self.best_mm = self.network.trained_state(), moved_mm
        self.step = step
        if self.path is None:
            return
        content = {
            "key": self.key,
            "step": step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "mm": (self.first_mm, self.best_mm),
        }
        with replacing(self.path) as partial, open(partial, "wb") as file:
            torch.save(content, file)

    def _read(self, path: Path) -> None:
        try:
            content = torch.load(path, weights_only=True)
            if content["key"] != self.key:
                return  # of other settings: begun anew
            self.network.load_state_dict(content["network"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.first_mm, self.best_mm = content["mm"]
            self.step, self.best = content["step"], content["best"]
        except Exception as error:  # torch's and pickle's exceptions have no common base but Exception
            raise UserError(
                f"{path} is no state of this fine-tuning ({type(error).__name__}): delete it, or take another --work"
            ) from None
