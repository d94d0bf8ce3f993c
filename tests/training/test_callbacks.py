"""Averaged weights, the last checkpoint, and the time per step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from training import callbacks
from training.callbacks import LastCheckpoint, StepTimeBar, averaged_weights


def test_the_average_follows_its_definition() -> None:
    average = averaged_weights(0.9)._kwargs["avg_fn"]
    old, new = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 2.0])
    torch.testing.assert_close(average(old, new, 1000), 0.9 * old + 0.1 * new)
    early = 2 / 11  # (1 + n) / (10 + n) at n = 1
    torch.testing.assert_close(average(old, new, torch.tensor(1)), early * old + (1 - early) * new)
    # Equal values stay what they are to the last bit, and indices are never averaged.
    values = torch.rand(1000)
    assert torch.equal(average(values, values, 50), values)
    indices = torch.randint(0, 2**31, (100,))
    assert torch.equal(average(torch.zeros_like(indices), indices, 5), indices)


class _Trainer(SimpleNamespace):
    def __init__(self, **values: Any) -> None:
        super().__init__(max_steps=-1, val_check_batch=100, num_training_batches=100, is_global_zero=True, **values)
        self.state, self.sanity_checking = SimpleNamespace(fn="fit"), False
        self.saved: list[int] = []

    def save_checkpoint(self, path: Path, weights_only: bool) -> None:
        Path(path).write_text("x")
        self.saved.append(self.global_step)


@pytest.mark.parametrize(
    ("every", "changes", "saved"),
    [
        (0, {}, []),
        (2, {}, [2, 4, 6]),
        (0, {"max_steps": 5}, [5]),
        (0, {"num_training_batches": 12}, [6]),
        (0, {"val_check_batch": 8}, [4]),  # after the validation
        (2, {"val_check_batch": 8}, [2, 4, 6]),  # once where both are due
    ],
)
def test_the_last_checkpoint_is_written_after_whole_steps(
    every: int, changes: dict[str, int], saved: list[int], tmp_path: Path
) -> None:
    trainer = _Trainer(global_step=0)
    for name, value in changes.items():
        setattr(trainer, name, value)
    last = LastCheckpoint(tmp_path / "last.ckpt", every)
    last.on_train_start(trainer, None)  # type: ignore[arg-type]
    for batch in range(13):  # two batches a step
        trainer.global_step = (batch + 1) // 2
        last.on_train_batch_end(trainer, None, None, None, batch)  # type: ignore[arg-type]
        if (batch + 1) % trainer.val_check_batch == 0:
            last.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert trainer.saved == saved
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"] * bool(saved)


def test_the_bar_shows_the_mean_time_per_step_without_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 4.0, 100.0, 102.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(clock))
    bar = StepTimeBar()
    bar.disable()
    monkeypatch.setattr(callbacks.TQDMProgressBar, "get_metrics", lambda *args: {"v_num": "csv", "train/loss": 1.5})
    for name in ("on_train_start", "on_validation_end"):
        monkeypatch.setattr(callbacks.TQDMProgressBar, name, lambda *args: None)
    trainer: Any = SimpleNamespace(num_training_batches=4, current_epoch=0, accumulate_grad_batches=2)
    bar._train_progress_bar = SimpleNamespace(set_description=lambda text: None, total=None)  # type: ignore[assignment]
    bar._trainer = trainer
    bar.on_train_start(trainer)
    for batch in range(2):  # 1 s, then 3 s
        bar.on_train_batch_end(trainer, None, None, None, batch)
    bar.on_validation_end(trainer, None)  # at 100 s
    bar.on_train_batch_end(trainer, None, None, None, 2)  # 2 s
    assert bar.step_seconds == pytest.approx(2.0)
    assert bar.get_metrics(trainer, None) == {"s/step": "4", "train/loss": 1.5}
