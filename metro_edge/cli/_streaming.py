"""What `run` and `view` share: a stream opened from their options."""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metro_edge.errors import UserError

if TYPE_CHECKING:
    from metro_edge.video.drawing import Style
    from metro_edge.video.stream import Stream

PARTS = ("mesh", "skeleton", "boxes", "labels", "side")
DEFAULT_PARTS = ("mesh", "boxes", "labels")
PICTURE_OPTIONS = ("side_by_side", "smpl_parameters", "smpl", "smpl_gender", "smpl_shape_weight", "smpl_same_person")


def is_stream(sources: Sequence[str]) -> bool:
    """Whether the sources are a video, a folder or a live source, not pictures; raises UserError for a mixture."""
    streams = [source for source in sources if _is_stream(source)]
    if streams and len(sources) > 1:
        raise UserError(f"one video, folder or live source at a time, got {len(sources)} sources with {streams[0]}")
    return bool(streams)


def _is_stream(source: str) -> bool:
    from metro_edge.files import kind_of_path
    from metro_edge.video.live import is_live
    from metro_edge.video.sources import VIDEO_SUFFIXES, is_picture

    if is_live(source):
        return True
    path, kind = Path(source), kind_of_path(source)
    if kind is None or not source:  # a mistake, and of a picture if the suffix does not say otherwise
        return path.suffix.lower() in VIDEO_SUFFIXES
    return kind != "file" or not is_picture(path)


def open_stream(args: argparse.Namespace, mesh: bool = True) -> Stream:
    """Return the stream that the options ask for; raises UserError."""
    from metro_edge.estimator import MeshEstimator
    from metro_edge.video.network import default_in_flight, stream_threads
    from metro_edge.video.smoother import BodySmoother
    from metro_edge.video.sources import Span, open_source
    from metro_edge.video.stream import DETECT_EVERY, Stream, choose_people

    if args.boxes and args.boxes_file:
        raise UserError("--box and --boxes exclude each other: give one of them")
    people = choose_people(args.boxes or args.boxes_file, args.detector, args.detect_every or DETECT_EVERY)
    source = open_source(args.sources[0], Span(args.start, args.end, args.stride), args.fps)
    estimator = MeshEstimator.from_bundle(
        args.bundle,
        args.precision,
        args.backend,
        threads=stream_threads(args.backend) if args.threads is None and args.affinity is None else args.threads,
        focal_px=args.focal_px,
        crop_rule=args.crop_rule,
        affinity=args.affinity,
        in_flight=default_in_flight(source) if args.in_flight is None else args.in_flight,
    )
    smoother = None if args.no_smoothing else BodySmoother(mesh=mesh)
    try:
        return Stream(source, estimator, people, smoother, args.camera_matrix, args.in_flight)
    except UserError:
        estimator.close()
        raise


def style_of(parts: Sequence[str] | None) -> Style:
    """Return the style of --draw; raises UserError for a part that is unknown."""
    from metro_edge.video.drawing import Style

    parts = DEFAULT_PARTS if parts is None else parts
    if unknown := set(parts) - set(PARTS):
        raise UserError(f"--draw: unknown {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}")
    return Style(**{part: part in parts for part in PARTS})


def run_stream(args: argparse.Namespace) -> int:
    """Run a source into files and print what was written; returns the exit code."""
    from metro_edge.files import output_folder
    from metro_edge.video.recording import DEFAULT_KINDS, open_sinks, record

    if given := [name for name in PICTURE_OPTIONS if getattr(args, name)]:
        raise UserError(f"--{given[0].replace('_', '-')} goes with pictures")
    kinds = DEFAULT_KINDS if args.write is None else args.write
    style = style_of(args.draw)
    needs_mesh = (style.mesh and bool({"overlay", "window"} & set(kinds))) or bool({"glb", "mesh-npz"} & set(kinds))
    with open_stream(args, needs_mesh) as stream:
        folder = output_folder(args.output) if set(kinds) - {"window"} else Path(os.curdir)
        done = record(stream, open_sinks(kinds, folder, stream, style), _progress)
    for note in done.notes:
        print(f"note: {note}")
    print(f"{stream.source.name}: {done.frames} frames -> {', '.join(str(path) for path in done.paths) or 'no file'}")
    print(done.stage_table())
    if done.signal is None:
        return 0
    print(f"interrupted by {signal.Signals(done.signal).name}: the files hold the {done.frames} frames until then")
    return 128 + done.signal


def _progress(results: Any, count: int | None) -> Any:
    from tqdm import tqdm

    return tqdm(results, total=count, unit="frame", leave=False, dynamic_ncols=True)
