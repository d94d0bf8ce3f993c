"""A contact sheet of generated samples, to be looked at."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from metro_edge.errors import UserError
from metro_edge.joints import joint_set
from metro_edge.raster import project
from metro_edge.template import BodyTemplate
from training.data.generator import GeneratedPeople, GeneratedSample

_QUALITIES = (92, 85, 75, 60, 45)
SUFFIXES = (".jpg", ".jpeg", ".png")


def contact_sheet(
    generator: GeneratedPeople,
    count: int,
    path: str | os.PathLike[str],
    template: BodyTemplate | None = None,
    tile_px: int = 192,
    limit_bytes: int = 1_000_000,
) -> None:
    """Write a grid of the first `count` samples; with a `template` the h36m14 joints and the box are drawn.

    A .jpg is compressed until it fits into `limit_bytes`. Raises UserError for a count the generator does not
    have and for a path that cannot be written or is no picture's.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UserError(f"a contact sheet is a picture, {' or '.join(SUFFIXES)}, not {Path(path).name}")
    if not 1 <= count <= len(generator):
        raise UserError(f"count must be 1 to {len(generator)}, the generator's size, got {count}")
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * tile_px, columns * tile_px, 3), 255, np.uint8)
    for k, sample in enumerate(tqdm(generator.samples(range(count)), total=count, desc="contact sheet", leave=False)):
        frame = sample.frame if template is None else _annotated(sample, template)
        y, x = k // columns * tile_px, k % columns * tile_px
        sheet[y : y + tile_px, x : x + tile_px] = cv2.resize(frame, (tile_px, tile_px), interpolation=cv2.INTER_AREA)
    _write(Path(path), sheet, limit_bytes)


def _annotated(sample: GeneratedSample, template: BodyTemplate) -> NDArray[np.uint8]:
    frame = sample.frame.copy()
    points = project(template.joints("h36m14", sample.vertices), sample.focal_px, sample.centre_px)
    for a, b in joint_set("h36m14").bone_indices:
        cv2.line(frame, points[a].astype(int).tolist(), points[b].astype(int).tolist(), (0, 255, 255), 1, cv2.LINE_AA)
    x, y, w, h = (int(v) for v in sample.box)
    cv2.rectangle(frame, (x, y), (x + w - 1, y + h - 1), (0, 255, 0), 1)
    return frame


def _write(path: Path, sheet: NDArray[np.uint8], limit_bytes: int) -> None:
    partial = path.with_name(f".partial-{path.name}")
    try:
        jpeg = path.suffix.lower() in (".jpg", ".jpeg")
        for quality in _QUALITIES if jpeg else (100,):
            _, data = cv2.imencode(path.suffix, sheet, [cv2.IMWRITE_JPEG_QUALITY, quality] if jpeg else [])
            if len(data) <= limit_bytes or not jpeg:
                break
        partial.write_bytes(data.tobytes())
        os.replace(partial, path)
    except (OSError, cv2.error) as error:
        raise UserError(f"cannot write the contact sheet {path}: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
