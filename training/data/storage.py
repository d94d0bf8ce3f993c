"""Shards: generated samples cached on disk, crop with margin and labels, to be memory-mapped by training.

folder/manifest.json            what made it, and how it is laid out
folder/shard-00000/images.npy   JPEGs of the stored crops one after another, uint8; offsets.npy (n + 1,) int64
                  /vertices.npy (n, V, 3) int16, 1/16 mm, root-centred, camera frame
                  /root.npy     (n, 3) float32 m, where the root stands before the camera
                  /camera.npy   (n, 3) float32 focal length and principal point in px of the stored crop
                  /joints.S.npy (n, J, 3) float32 m, root-centred; visible.S.npy (n, J) bool; S a joint set
                  /family.npy   (n,) uint8, index into the manifest's families
                  /box.npy      (n, 4) float32 x, y, width, height of the person in px of the frame; shards that an
                                earlier metro-edge wrote have none
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.preprocess import crop_affine, crop_images
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.generator import GENERATOR_VERSION, GeneratedPeople, GeneratedSample
from training.data.poses import FAMILIES

SCHEMA_VERSION = 1
SHARD_SIZE = 256
MARGIN = 1.25  # side of the stored square over that of the crop
UNIT_M = 1 / 16_000  # of stored vertices
JPEG_QUALITY = 95
ROOT_JOINT_SET = "h36m14"
JOINT_NEIGHBOURHOOD_M = 0.08
VISIBLE_SHARE = 0.12  # of the vertices about a joint, half of which face away at best

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds; two folders with equal manifests hold equal samples."""

    schema_version: int
    generator_version: int
    seed: int
    count: int
    frame_wh: tuple[int, int]
    family: str | None
    shard_size: int
    body: str
    vertex_count: int
    joint_sets: tuple[str, ...]
    families: tuple[str, ...]
    stored_px: int
    margin: float
    box_scale: float
    crop_rule: str
    unit_m: float

    def shard_range(self, shard: int) -> range:
        """Return the sample indices of a shard."""
        return range(shard * self.shard_size, min(self.count, (shard + 1) * self.shard_size))

    @property
    def shard_count(self) -> int:
        """How many shards there are."""
        return -(-self.count // self.shard_size)


def stored_spec(spec: ModelSpec) -> ModelSpec:
    """Return the spec of the stored crop: wider by MARGIN and 40 % more pixels a side, so that it can be cut again."""
    return replace(spec, image_size=round(spec.image_size * 1.4 / 8) * 8, box_scale=spec.box_scale * MARGIN)


def shard_path(folder: Path, shard: int) -> Path:
    """Return the folder of one shard."""
    return folder / f"shard-{shard:05d}"


def write_shards(
    generator: GeneratedPeople,
    folder: str | os.PathLike[str],
    count: int,
    spec: ModelSpec,
    template: BodyTemplate | None = None,
    workers: int = 2,
    shard_size: int = SHARD_SIZE,
) -> Manifest:
    """Render the first `count` samples into `folder`; shards that are there already are kept.

    Args:
        generator: of the samples.
        folder: made if missing. Each shard appears whole or not at all, so an interrupted run can go on.
        count: at most the generator's size.
        spec: crop rule, box scale and input size of the network in mind.
        template: with the joint regressors; None loads the Anny template.
        workers: processes; 1 renders in this one.
        shard_size: samples per shard.

    Raises:
        UserError: for a bad count, an unwritable folder, or one that holds something else.
    """
    if not 1 <= count <= len(generator):
        raise UserError(f"count must be 1 to {len(generator)}, the generator's size, got {count}")
    if workers < 1 or shard_size < 1:
        raise UserError(f"workers and shard_size must be at least 1, got {workers} and {shard_size}")
    template = template or _default_template()
    manifest = _manifest(generator, count, spec, template, shard_size)
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        _claim(target, manifest)
        _write_missing(generator, target, manifest, spec, template, workers)
    except OSError as error:
        raise UserError(f"cannot write shards to {target}: {error}") from None
    return manifest


def _default_template() -> BodyTemplate:
    from training.bodies.anny import load_anny_template

    return load_anny_template()


def _manifest(
    generator: GeneratedPeople, count: int, spec: ModelSpec, template: BodyTemplate, shard_size: int
) -> Manifest:
    stored = stored_spec(spec)
    return Manifest(
        SCHEMA_VERSION,
        GENERATOR_VERSION,
        generator.seed,
        count,
        (generator.frame_wh[0], generator.frame_wh[1]),
        generator.family,
        shard_size,
        template.name,
        len(template.vertices),
        tuple(sorted(template.regressors)),
        tuple(FAMILIES),
        stored.image_size,
        MARGIN,
        spec.box_scale,
        spec.crop_rule,
        UNIT_M,
    )


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read manifest.json; raises UserError when it is missing, damaged or of another schema version."""
    path = Path(folder) / "manifest.json"
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no shards in {folder}: manifest.json is missing; make them with write_shards") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable: {error}") from None
    if not isinstance(values, dict) or values.get("schema_version") != SCHEMA_VERSION:
        raise UserError(f"{path} is not a shard manifest of schema version {SCHEMA_VERSION}")
    try:
        for key in ("frame_wh", "joint_sets", "families"):
            values[key] = tuple(values[key])
        return Manifest(**values)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is not a complete shard manifest: {error}") from None


def _claim(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, or make sure that the one in the folder is the same."""
    path = folder / "manifest.json"
    if path.exists():
        there = read_manifest(folder)
        if there != manifest:
            differing = [key for key, value in asdict(manifest).items() if asdict(there)[key] != value]
            raise UserError(
                f"{folder} holds shards of another set ({', '.join(differing)} differ): choose another folder"
            )
        return
    partial = folder / ".manifest.partial"
    partial.write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _write_missing(
    generator: GeneratedPeople,
    folder: Path,
    manifest: Manifest,
    spec: ModelSpec,
    template: BodyTemplate,
    workers: int,
) -> None:
    todo = [shard for shard in range(manifest.shard_count) if not shard_path(folder, shard).exists()]
    done = manifest.count - sum(len(manifest.shard_range(shard)) for shard in todo)
    with tqdm(total=manifest.count, initial=done, desc="shards", unit="sample") as bar:
        if workers == 1:
            for shard in todo:
                bar.update(_write_shard(generator, folder, manifest, spec, template, shard, bar))
            return
        # Spawned, because a fork would copy the locks of the parent's threads.
        context = multiprocessing.get_context("spawn")
        arguments = (generator.seed, generator.size, generator.frame_wh, generator.family)
        with ProcessPoolExecutor(
            workers, context, _start_worker, (arguments, folder, manifest, spec, template)
        ) as pool:
            for finished in as_completed([pool.submit(_work, shard) for shard in todo]):
                bar.update(finished.result())


_worker: tuple[GeneratedPeople, Path, Manifest, ModelSpec, BodyTemplate] | None = None


def _start_worker(
    arguments: tuple[Any, ...], folder: Path, manifest: Manifest, spec: ModelSpec, template: BodyTemplate
) -> None:
    import torch

    global _worker
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    _worker = (GeneratedPeople(*arguments), folder, manifest, spec, template)


def _work(shard: int) -> int:
    assert _worker is not None
    return _write_shard(*_worker, shard)


def _write_shard(
    generator: GeneratedPeople,
    folder: Path,
    manifest: Manifest,
    spec: ModelSpec,
    template: BodyTemplate,
    shard: int,
    bar: Any = None,
) -> int:
    """Render one shard into a temporary folder, then rename it; returns the samples still to be counted."""
    stored, near = stored_spec(spec), joint_neighbourhoods(template)
    columns: dict[str, list[Any]] = {}
    images: list[NDArray[np.uint8]] = []
    for sample in generator.samples(manifest.shard_range(shard)):
        images.append(_encoded(sample, stored))
        for name, value in _labels(sample, stored, template, near).items():
            columns.setdefault(name, []).append(value)
        if bar is not None:
            bar.update(1)
    target = shard_path(folder, shard)
    partial = folder / f".{target.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        np.save(partial / "images.npy", np.concatenate(images))
        np.save(partial / "offsets.npy", np.cumsum([0] + [len(image) for image in images], dtype=np.int64))
        for name, values in columns.items():
            np.save(partial / f"{name}.npy", np.stack(values))
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return 0 if bar is not None else len(images)


def _encoded(sample: GeneratedSample, stored: ModelSpec) -> NDArray[np.uint8]:
    crop = crop_images(sample.frame, sample.box, stored)[0]
    _, data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return np.asarray(data, np.uint8).ravel()


def _labels(
    sample: GeneratedSample, stored: ModelSpec, template: BodyTemplate, near: dict[str, Floats]
) -> dict[str, Any]:
    affine = crop_affine(sample.box[None], stored)[0]
    root = template.root(ROOT_JOINT_SET, sample.vertices).astype(np.float32)
    centred = sample.vertices - root
    labels: dict[str, Any] = {
        "vertices": quantised(centred),
        "root": root,
        "camera": np.array(
            [affine[0, 0] * sample.focal_px, *(affine[:, :2] @ sample.centre_px + affine[:, 2])], np.float32
        ),
        "family": np.uint8(tuple(FAMILIES).index(sample.family)),
        "box": sample.box.astype(np.float32),
    }
    for name, mask in near.items():
        labels[f"joints.{name}"] = template.joints(name, centred).astype(np.float32)
        seen = (mask @ sample.visible.astype(np.float32)) / np.maximum(mask.sum(1), 1)
        labels[f"visible.{name}"] = seen > VISIBLE_SHARE
    return labels


def quantised(vertices_m: NDArray[np.floating]) -> NDArray[np.int16]:
    """Return metres as int16 in units of 1/16 mm; raises UserError beyond +-2.04 m."""
    units = np.rint(vertices_m / UNIT_M)
    if np.abs(units).max(initial=0) > 32767:
        raise UserError(f"vertices reach {np.abs(vertices_m).max():.2f} m from the root, int16 holds 2.04 m")
    return units.astype(np.int16)


def joint_neighbourhoods(template: BodyTemplate) -> dict[str, Floats]:
    """Return, per joint set, (J, V) float32: 1 for vertices near a joint in the rest pose (the nearest, at least)."""
    masks = {}
    for name in sorted(template.regressors):
        joints = template.joints(name, template.vertices)
        distance = np.linalg.norm(joints[:, None] - template.vertices[None], axis=-1)
        limit = np.maximum(JOINT_NEIGHBOURHOOD_M, distance.min(axis=1, keepdims=True) * 1.5)
        masks[name] = (distance < limit).astype(np.float32)
    return masks
