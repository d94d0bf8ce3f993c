"""The demonstration: bodies on a shipped picture and clip, and what each precision costs on this machine.

The clip is rendered, so its true meshes are known: truth.npz holds `boxes` (F, 4) px of every frame,
`frame_ids` (K,) of the frames with a mesh, and their `vertices` (K, V, 3) int16 in 1/16 mm, camera frame, from
the root joint; optionally `picture_box` (4,) px of the person in picture.jpg, whose default is the whole picture.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.body import Body
from metro_edge.bundle import ACCURACY_KEYS, Bundle
from metro_edge.errors import UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.metrics import mean_mm, mesh_errors
from metro_edge.preprocess import Frame, check_boxes, read_picture
from metro_edge.results import model_description, write_results
from metro_edge.tables import text_table
from metro_edge.timing import Latency, measure
from metro_edge.video.overlay import draw_bodies, side_by_side
from metro_edge.video.sinks import write_video
from metro_edge.video.sources import VideoFile

UNITS_PER_METRE = 16_000.0  # of the int16 vertices in truth.npz
LATENCY_CALLS, LATENCY_LIMIT_S = 50, 6.0


@dataclass(frozen=True, eq=False)
class DemoAssets:
    """The shipped picture and clip with their truth.

    Attributes:
        picture, picture_box: (H, W, 3) uint8 BGR and the person's box (1, 4) px.
        clip, boxes: F frames and the person's box in each, (F, 4) px.
        frame_ids, vertices: (K,) and the true meshes of these frames, (K, V, 3) float64 metres from the root.
        fps: of the clip.
    """

    picture: Frame
    picture_box: NDArray[np.float64]
    clip: list[Frame]
    boxes: NDArray[np.float64]
    frame_ids: NDArray[np.int64]
    vertices: NDArray[np.float64]
    fps: float

    @classmethod
    def load(cls, folder: Path | None = None) -> DemoAssets:
        """Load the assets, by default the shipped ones; raises UserError when missing or inconsistent."""
        folder = folder or Path(__file__).parent / "assets" / "demo"
        if not folder.is_dir():
            raise UserError(f"this installation of metro-edge has no demonstration at {folder}")
        picture = read_picture(folder / "picture.jpg")
        video = VideoFile(folder / "clip.mp4")
        clip = [frame.image for frame in video]
        truth = _read_truth(folder / "truth.npz")
        boxes, ids, vertices = truth["boxes"], truth["frame_ids"].astype(np.int64), truth["vertices"]
        if boxes.shape != (len(clip), 4) or not len(clip):
            raise UserError(f"{folder}: boxes {boxes.shape} do not fit a clip of {len(clip)} frames")
        if vertices.dtype != np.int16 or vertices.ndim != 3 or len(vertices) != len(ids) or not len(ids):
            raise UserError(f"{folder}: vertices {vertices.shape} {vertices.dtype} do not fit {len(ids)} frame_ids")
        if ids.min() < 0 or ids.max() >= len(clip):
            raise UserError(f"{folder}: frame_ids lie outside the clip's {len(clip)} frames")
        picture_box = truth.get("picture_box", np.array([0, 0, picture.shape[1], picture.shape[0]]))
        return cls(
            picture=picture,
            picture_box=check_boxes(picture_box, picture.shape[:2]),
            clip=clip,
            boxes=check_boxes(boxes, clip[0].shape[:2]),
            frame_ids=ids,
            vertices=vertices.astype(np.float64) / UNITS_PER_METRE,
            fps=video.fps,
        )


@dataclass(frozen=True, eq=False)
class PrecisionResult:
    """What one precision did on the clip.

    Attributes:
        precision, device: what ran.
        latency: of frame -> bodies with one person.
        means_mm: `mpjpe`, `pa_mpjpe`, `mpvpe` over the K frames.
        vertices: (K, V, 3) predicted, metres from the root joint.
    """

    precision: str
    device: str
    latency: Latency
    means_mm: dict[str, float]
    vertices: NDArray[np.float32]


def write_pictures(estimator: MeshEstimator, assets: DemoAssets, folder: Path, progress: Any) -> list[Path]:
    """Write the picture's results and the clip with its overlay into `folder`; returns their paths.

    Args:
        estimator: runs the network.
        assets: the shipped picture and clip.
        folder: where to; it exists.
        progress: wraps the clip's frames, as tqdm does.
    """
    bodies = estimator(assets.picture, assets.picture_box)
    model = model_description(estimator)
    paths = write_results(folder, "picture", "picture.jpg", assets.picture, bodies, model, beside=True)
    video = folder / "clip.overlay.mp4"

    def drawn() -> Any:
        for frame, box in progress(list(zip(assets.clip, assets.boxes, strict=True))):
            yield side_by_side(frame, draw_bodies(frame, estimator(frame, box)))

    write_video(video, drawn(), assets.fps)
    return [*paths, video]


def evaluate(estimator: MeshEstimator, assets: DemoAssets, calls: int = LATENCY_CALLS) -> PrecisionResult:
    """Compare the clip's meshes with the truth and time `calls` calls.

    Raises UserError for another body, or a network that gives joints alone.
    """
    if "vertices" not in estimator.bundle.spec.outputs:
        raise UserError("the demonstration compares meshes; this bundle's network gives joints alone")
    bodies: list[Body] = []
    for frame_id in assets.frame_ids:
        bodies += estimator(assets.clip[frame_id], assets.boxes[frame_id])
    vertices = np.stack([body.vertices for body in bodies])
    bundle = estimator.bundle
    errors = mesh_errors(vertices, assets.vertices, bundle.template, bundle.spec.joint_set)
    frame, box = assets.clip[0], assets.boxes[0]
    latency = measure(lambda: estimator(frame, box), calls=calls, warmup=3, limit_s=LATENCY_LIMIT_S)
    return PrecisionResult(
        precision=estimator.session.precision,
        device=estimator.session.device,
        latency=latency,
        means_mm=errors.means_mm(),
        vertices=vertices,
    )


def results_table(results: list[PrecisionResult]) -> str:
    """Return the table precision x latency x errors; the first result is what the others are held against."""
    header = ("precision", "p50 ms", "p95 ms", "MPJPE mm", "PA-MPJPE mm", "MPVPE mm", "lost mm", "moved mm")
    reference = results[0]
    rows = []
    for result in results:
        errors = [f"{result.means_mm[name]:.1f}" for name in ("mpjpe", "pa_mpjpe", "mpvpe")]
        lost = result.means_mm["mpvpe"] - reference.means_mm["mpvpe"]
        moved = mean_mm(np.linalg.norm(result.vertices - reference.vertices, axis=-1))
        speed = [f"{result.latency.p50_ms:.1f}", f"{result.latency.p95_ms:.1f}"]
        first = result is reference
        rows.append([result.precision, *speed, *errors, *(["-", "-"] if first else [f"{lost:+.2f}", f"{moved:.2f}"])])
    return text_table(header, rows)


def passport_table(bundle: Bundle) -> str | None:
    """Return the errors that the bundle's passport gives per precision, with what they were measured on."""
    rows = []
    for precision in bundle.precisions:
        values = bundle.accuracy(precision)
        if values is not None:
            rows.append([precision, *(f"{values[key]:.2f}" for key in ACCURACY_KEYS)])
    if not rows:
        return None
    accuracy = bundle.passport["accuracy"]
    header = ("precision", "MPJPE mm", "PA-MPJPE mm", "MPVPE mm", "moved mm")
    samples = accuracy.get("samples", "unknown number of")
    return f"{text_table(header, rows)}\n{samples} samples, {accuracy.get('data', 'data not stated')}"


def _read_truth(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            truth = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not readable: {error}") from None
    if missing := {"boxes", "frame_ids", "vertices"} - truth.keys():
        raise UserError(f"{path} lacks {', '.join(sorted(missing))}")
    return truth
