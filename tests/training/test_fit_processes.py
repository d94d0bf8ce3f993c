"""Runs in processes of their own: two that train together, and one that is killed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from training.config import FitConfig
from training.fit import fit

# The step that dies is the last but one of the second epoch; the newest checkpoint is a step older.
KILLED = """
import os, signal, sys
from training.module import MetroModule
step = MetroModule.training_step
def killed(self, batch, batch_idx):
    if self.global_step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
MetroModule.training_step = killed
from training.__main__ import main
main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the other processes have: the order of sums, and so the last digits, depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}


def _last_row(folder: Path) -> dict[str, str]:
    with open(folder / "metrics.csv") as file:
        return [row for row in csv.DictReader(file) if row["validation/mpjpe_mm"]][-1]


@pytest.mark.slow
def test_two_processes_do_what_one_does_with_twice_the_batch(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    """Nine validation samples: processes have five and four of them, none twice."""
    values = tiny_run | {
        "model": tiny_run["model"] | {"mvm_fraction": 0.0},
        "data": tiny_run["data"] | {"validation_count": 9},
    }
    optim = tiny_run["optim"] | {"epochs": 1, "ema_decay": 0.5}
    one = FitConfig.from_dict(values | {"optim": optim | {"batch_size": 8, "accumulate": 2}})
    fit(one, tmp_path / "one")
    config = tmp_path / "two.yaml"
    config.write_text(yaml.safe_dump(values | {"optim": optim | {"batch_size": 8}}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "training", "fit", str(config), "-o", str(tmp_path / "two")]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    states = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("one", "two")]
    assert [state["global_step"] for state in states] == [2, 2]  # 32 samples, 16 a step
    rows = [_last_row(tmp_path / name / "csv") for name in ("one", "two")]
    for name in ("mpjpe", "pa_mpjpe", "mpvpe"):
        a, b = (float(row[f"validation/{name}_mm"]) for row in rows)
        assert a == pytest.approx(b, rel=1e-4), name
    moments = [
        torch.cat([s["exp_avg"].flatten() for s in state["optimizer_states"][0]["state"].values()]) for state in states
    ]
    assert (moments[0] - moments[1]).norm() < 1e-3 * moments[0].norm()


@pytest.mark.slow
def test_a_killed_run_ends_like_an_unbroken_one(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    values = tiny_run | {"optim": tiny_run["optim"] | {"checkpoint_every_steps": 2, "ema_decay": 0.9}}
    fit(FitConfig.from_dict(values), tmp_path / "whole")
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-c", KILLED, "fit", str(config), "-o", str(tmp_path / "killed")]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 6  # of 8, four an epoch
    fit(FitConfig.from_dict(values), tmp_path / "killed", resume=True)
    whole, killed = (_last_row(tmp_path / name) for name in ("whole/csv", "killed/csv-2"))
    for name in ("mpjpe", "pa_mpjpe", "mpvpe"):
        assert float(killed[f"validation/{name}_mm"]) == pytest.approx(float(whole[f"validation/{name}_mm"]), abs=1e-2)
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").glob("*last*")] == ["last.ckpt"]
