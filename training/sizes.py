"""What the sizes of the edge preset cost: time per picture and per training sample, and the error of a coarser mesh.

The preset's image size, number of coarse vertices and encoder widths were chosen from this table; run it again with

    python -m training sizes
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.template import SparseMatrix
from training.bodies import anny, fit
from training.model import EncoderBlock, Metro, MetroConfig
from training.model.presets import metro_edge

IMAGE_SIZES = (128, 160, 192, 224)
COARSE_COUNTS = (96, 146, 256, 431)
WIDTHS = {
    "128/64/32 x 2": (128, 64, 32),
    "256/128/64 x 2": (256, 128, 64),
    "512/256/64 x 2": (512, 256, 64),
}
POPULATION, TRAIN_BATCH = 320, 16
TRAIN_EVERY = 8  # runs


def variants() -> Iterator[tuple[str, MetroConfig]]:
    """Yield the preset and its neighbours: one size changed at a time."""
    preset = metro_edge()
    yield "preset", preset
    for size in IMAGE_SIZES:
        if size != preset.image_size:
            yield f"{size} px", dataclasses.replace(preset, image_size=size)
    for coarse in COARSE_COUNTS:
        if coarse != preset.vertex_levels[0]:
            yield f"{coarse} coarse", dataclasses.replace(preset, vertex_levels=(coarse, *preset.vertex_levels[1:]))
    for name, widths in WIDTHS.items():
        outputs = (*widths[1:], 3)
        blocks = tuple(EncoderBlock(w, 2, 4, 4 * w, o) for w, o in zip(widths, outputs, strict=True))
        if blocks != preset.blocks:
            yield name, dataclasses.replace(preset, blocks=blocks)


def size_table(runs: int = 40) -> str:
    """Measure every variant, interleaved, on this machine's CPU with PyTorch; return a Markdown table.

    Raises UserError for fewer runs than TRAIN_EVERY, the first of which trains too.
    """
    if runs < TRAIN_EVERY:
        raise UserError(f"--runs must be at least {TRAIN_EVERY}, got {runs}")
    floors = {coarse: coarse_floor_mm(coarse) for coarse in tqdm(COARSE_COUNTS, desc="meshes")}
    models = {name: (config, _untrained(config)) for name, config in variants()}
    forward: dict[str, list[float]] = {name: [] for name in models}
    training: dict[str, list[float]] = {name: [] for name in models}
    for run in tqdm(range(runs + 1), desc="timing"):
        for name, (config, model) in models.items():
            seconds = _forward_seconds(config, model)
            both = _training_seconds(config, model) if run % TRAIN_EVERY == 0 else None
            if run:  # the first round warms up
                forward[name].append(seconds)
            if run and both is not None:
                training[name].append(both / TRAIN_BATCH)
    lines = [
        "| variant | tokens | parameters M | forward ms | training ms/sample | coarse mesh floor mm |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, (config, model) in models.items():
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        lines.append(
            f"| {name} | {config.num_tokens} | {parameters:.2f} | {np.median(forward[name]) * 1e3:.1f} "
            f"| {np.median(training[name]) * 1e3:.1f} | {floors[config.vertex_levels[0]]:.1f} |"
        )
    return "\n".join(lines)


def coarse_floor_mm(count: int) -> float:
    """Return the mean vertex error, in mm, of the full mesh rebuilt from `count` true coarse vertices."""
    template = anny.load_anny_template()
    mirror = fit.mirror_permutation(anny.camera_frame(anny.anny_model().template_vertices.numpy()))
    bodies = [anny.random_population(n, seed)["vertices"] for n, seed in ((POPULATION, 7), (POPULATION // 4, 8))]
    fitted, held_out = (b - template.root("h36m14", b)[:, None] for b in bodies)
    middle = template.level_vertices[1].astype(np.int64)
    # A body's coordinates tell three vertices apart at most: of fewer bodies rounding would draw the last ones.
    every = 4 if count < 3 * len(fitted) // 8 else 1
    coarse = fit.symmetric_subset(fitted[::every], middle[np.isin(mirror[middle], middle)], mirror, count)
    step = fit.fit_upsampling(fitted, coarse, middle, anny.COARSE_NEIGHBOURS)
    rebuilt = template.upsampling[1] @ (step @ held_out[:, coarse])
    return float(np.linalg.norm(rebuilt - held_out, axis=-1).mean() * 1e3)


def _untrained(config: MetroConfig) -> Metro:
    template = anny.load_anny_template()
    coarse = config.vertex_levels[0]
    chosen = np.linspace(0, len(template.level_vertices[1]) - 1, coarse).astype(int)
    middle = config.vertex_levels[1]
    columns = np.arange(middle, dtype=np.int32)[:, None] % coarse
    step = SparseMatrix(columns.astype(np.int32), np.ones((middle, 1), np.float32))
    joints = template.joints(config.joint_set, template.vertices)
    vertices = template.vertices[template.level_vertices[1][chosen]]
    model = Metro(config, joints, vertices, (step, template.upsampling[1]))
    return model.to(memory_format=torch.channels_last)


def _forward_seconds(config: MetroConfig, model: Metro) -> float:
    image = torch.zeros(1, 3, config.image_size, config.image_size).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return _timed(lambda: model.eval()(image))


def _training_seconds(config: MetroConfig, model: Metro) -> float:
    images = torch.zeros(TRAIN_BATCH, 3, config.image_size, config.image_size)

    def step() -> None:
        output = model.train()(images.contiguous(memory_format=torch.channels_last))
        (output.camera.sum() + output.joints.sum() + output.vertices[-1].sum()).backward()
        model.zero_grad()

    return _timed(step)


def _timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
