"""What is published about a network: accuracy on held-out generated people beside baselines that see no image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from metro_edge.errors import UserError
from metro_edge.metrics import METRIC_NAMES
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.data.shards import BODY, ShardedPeople, people_shards
from training.evaluate import PROTOCOL, best_constant_pose, constant, evaluate, mean_body, predictor
from training.model.weight_files import listed

BASELINE_SAMPLES = 4_000  # of the training set: the means move by less than a millimetre with more


def accuracy_report(checkpoint: Checkpoint, count: int | None = None) -> dict[str, Any]:
    """Evaluate a checkpoint on its run's held-out samples.

    Returns: `protocol`, `samples`, `seed`, and under `errors_mm` per method the MPJPE, PA-MPJPE and MPVPE in mm.

    Raises:
        UserError: a network that was not trained on generated people, or a count that is not there.
    """
    config = checkpoint.config
    data, spec = config.data, config.spec
    if data.train_sets or spec.body != BODY:
        sets = f"the data sets {', '.join(data.train_sets)}" if data.train_sets else f"people of the body {spec.body!r}"
        raise UserError(
            f"network {config.name!r} was trained on {sets}, not on generated people, so it has no held-out samples "
            "of its own here: python -m training evaluate NETWORK --protocol NAME --data PATH"
        )
    if count is not None and not 1 <= count <= data.validation_count:
        raise UserError(f"the run has {data.validation_count} held-out samples, cannot take {count}")
    template = config.template
    train, held_out = (
        ShardedPeople(people_shards(Path(data.folder), spec, seed=seed, count=n, workers=2), spec, train=False)
        for seed, n in ((data.train_seed, data.train_count), (data.validation_seed, data.validation_count))
    )
    train = train.first(min(len(train), BASELINE_SAMPLES))
    if count is not None:
        held_out = held_out.first(count)
    methods = {
        config.name: predictor(checkpoint.model),
        "mean body": constant(mean_body(train, template)),
        "best constant pose": constant(best_constant_pose(train, template)),
    }
    errors = {name: evaluate(predict, held_out, template).means_mm() for name, predict in methods.items()}
    return {
        "protocol": PROTOCOL,
        "samples": len(held_out),
        "seed": data.validation_seed,
        "train_seed": data.train_seed,
        "train_samples": data.train_count,
        "errors_mm": {name: {k: round(v, 3) for k, v in values.items()} for name, values in errors.items()},
    }


def accuracy_table(report: dict[str, Any]) -> str:
    """Return the Markdown table of an accuracy report."""
    lines = ["| method | MPJPE mm | PA-MPJPE mm | MPVPE mm |", "| --- | --- | --- | --- |"]
    lines += [
        f"| {name} | " + " | ".join(f"{values[key]:.1f}" for key in METRIC_NAMES) + " |"
        for name, values in report["errors_mm"].items()
    ]
    return "\n".join([*lines, "", f"{report['samples']} samples of seed {report['seed']}; {report['protocol']}."])


def publish(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Round the weights to float16 values, measure them, and write the checkpoint that ships.

    Rounding first means that the half-sized file, its FP32 ONNX and its FP16 ONNX hold the same numbers.

    Raises UserError as accuracy_report and save_checkpoint do, and for weights beyond float16's range.
    """
    state = checkpoint.model.state_dict()
    rounded = {k: v.half().float() if v.is_floating_point() else v for k, v in state.items()}
    if wrong := [name for name, value in rounded.items() if not torch.isfinite(value).all()]:
        raise UserError(f"float16 cannot hold the weights {listed(wrong)}: NaN, infinity or beyond 65,504")
    checkpoint.model.load_state_dict(rounded)
    measured = replace(checkpoint, metrics=accuracy_report(checkpoint))
    save_checkpoint(path, measured, half=True)
    return load_checkpoint(path)
