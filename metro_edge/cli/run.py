"""`metro-edge run`: bodies in pictures, videos and live sources, as overlay, JSON, meshes and motion."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metro_edge.errors import UserError

if TYPE_CHECKING:
    from metro_edge.body import Body
    from metro_edge.bundle import Bundle
    from metro_edge.estimator import MeshEstimator
    from metro_edge.smpl.fit import SmplFitter, SmplParameters
from metro_edge.spec import CROP_RULES


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="find bodies in pictures, videos, cameras and streams",
        description="Of pictures: an overlay (PNG), joints and cameras (JSON) and one mesh per person (OBJ, GLB). Of a "
        "video, a folder of pictures or a live source: what --write names. Ctrl-C and SIGTERM end a run in good order.",
    )
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="pictures (JPEG, PNG, WebP, TIFF, BMP); or one video file, folder of pictures, camera number (0), address "
        "(rtsp://...) or GStreamer description",
    )
    parser.add_argument(
        "--box",
        metavar="X,Y,W,H",
        dest="boxes",
        action="append",
        type=parse_box,
        help="box of a person in pixels, once per person, for one picture or all frames (default: the whole picture is "
        "one person's box; in videos one prominent person is followed); write --box=-5,0,90,200 when it starts with "
        "a minus",
    )
    add_model_options(parser)
    parser.add_argument(
        "--crop-rule",
        metavar="R",
        help=f"how a box becomes the network's input: {', '.join(CROP_RULES)} (default: as the network learnt it)",
    )
    parser.add_argument("--precision", metavar="P", default="fp32", help="fp32, fp16 or int8 (default: fp32)")
    add_camera_options(parser)
    parser.add_argument("--side-by-side", action="store_true", help="put the bare picture beside the overlay")
    add_stream_options(parser)
    add_smpl_options(parser)
    parser.add_argument("-o", "--output", metavar="OUT", default="out", help="folder (default: out)")
    parser.set_defaults(run=run)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --bundle, --backend, --threads and --affinity, which every command that runs a network has."""
    parser.add_argument("--bundle", metavar="B", type=Path, help="folder or .zip (default: the shipped bundle)")
    parser.add_argument(
        "--backend", metavar="E", default="onnxruntime", help="onnxruntime, openvino or tensorrt (default: onnxruntime)"
    )
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads (default: the engine's choice)")
    parser.add_argument(
        "--affinity", metavar="C,C", type=parse_cores, help="CPU cores of the threads, such as 0,2 (default: any)"
    )


def add_camera_options(parser: argparse.ArgumentParser) -> None:
    """Add --focal-px and --camera-matrix, of which one may be given."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--focal-px",
        metavar="F",
        type=float,
        help="focal length in pixels (default: in folders the pictures' EXIF data, else the diagonal, a normal lens)",
    )
    group.add_argument(
        "--camera-matrix",
        metavar="FX,FY,CX,CY",
        type=parse_camera,
        help="focal lengths and principal point in pixels, as OpenCV's or ROS's calibration gives them, of undistorted "
        "frames",
    )


def add_people_options(parser: argparse.ArgumentParser) -> Any:
    """Add the options of videos and live sources that `run` and `view` share; returns their group."""
    group = parser.add_argument_group("videos and live sources", "see docs/live.md")
    group.add_argument(
        "--boxes", metavar="FILE", dest="boxes_file", type=Path, help="people's boxes, MOT (.txt) or COCO (.json)"
    )
    group.add_argument("--detector", metavar="ONNX", type=Path, help="network that finds people, see docs/live.md")
    group.add_argument("--detect-every", metavar="N", type=int, help="run the detector every N-th frame (default: 5)")
    group.add_argument("--start", metavar="S", type=float, default=0.0, help="seconds to leave out at the beginning")
    group.add_argument("--end", metavar="S", type=float, help="second to stop at")
    group.add_argument("--stride", metavar="N", type=int, default=1, help="take every N-th frame")
    group.add_argument("--fps", metavar="F", type=float, help="rate of a folder of pictures (default: 25)")
    group.add_argument("--no-smoothing", action="store_true", help="leave bodies as the network gives them")
    group.add_argument(
        "--in-flight", metavar="N", type=int,
        help="frames that the network works on at once (default: 2 for files on two cores or more, 1 for live sources)",
    )  # fmt: skip
    return group


def add_stream_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of videos and live sources."""
    group = add_people_options(parser)
    group.add_argument(
        "--write", metavar="KIND,KIND", type=parse_names,
        help="what to make: jsonl, overlay, npz, mesh-npz, glb, bvh, window (default: jsonl,overlay)",
    )  # fmt: skip
    group.add_argument(
        "--draw", metavar="PART,PART", type=parse_names,
        help="what the overlay shows: mesh, skeleton, boxes, labels, side (default: mesh,boxes,labels)",
    )  # fmt: skip


def add_smpl_options(parser: argparse.ArgumentParser) -> None:
    """Add --smpl-parameters and what goes with it."""
    group = parser.add_argument_group("SMPL parameters", "of a network with SMPL's or MANO's mesh, see docs/smpl.md")
    group.add_argument(
        "--smpl-parameters",
        action="store_true",
        help="fit pose, shape and translation to each mesh; written as .npz and into the JSON",
    )
    group.add_argument("--smpl", metavar="PATH", type=Path, help="your SMPL or MANO file, or a folder with them")
    group.add_argument(
        "--smpl-gender",
        metavar="G",
        choices=("neutral", "male", "female"),
        help="which SMPL of a folder: neutral (default, what METRO predicts), male or female",
    )
    group.add_argument(
        "--smpl-shape-weight",
        metavar="MM2",
        type=float,
        help="what a beta of one costs, in mm^2 of mean squared distance (default: 0.1): more keeps to the mean shape",
    )
    group.add_argument(
        "--smpl-same-person",
        action="store_true",
        help="all pictures show one person, whose shape is fitted to all of them together",
    )


def parse_cores(text: str) -> tuple[int, ...]:
    """Return the core numbers of `0,2`; raises argparse.ArgumentTypeError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of core numbers such as 0,2") from None


def parse_names(text: str) -> tuple[str, ...]:
    """Return the names of `a,b`, without empty ones; raises argparse.ArgumentTypeError when there is none."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise argparse.ArgumentTypeError(f"{text!r} names nothing")
    return names


def parse_camera(text: str) -> list[list[float]]:
    """Return the camera matrix (3, 3) of `fx,fy,cx,cy`; raises argparse.ArgumentTypeError."""
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not fx,fy,cx,cy in pixels") from None
    if not all(map(math.isfinite, (fx, fy, cx, cy))):
        raise argparse.ArgumentTypeError(f"{text!r} is not fx,fy,cx,cy in pixels: they must be finite")
    return [[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]]


def parse_box(text: str) -> tuple[float, float, float, float]:
    """Return x, y, width, height of `x,y,w,h`; raises argparse.ArgumentTypeError."""
    try:
        x, y, width, height = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not x,y,width,height in pixels") from None
    return x, y, width, height


def run(args: argparse.Namespace) -> int:
    """Process the sources and print what was written; returns the exit code."""
    from metro_edge.cli._streaming import is_stream, run_stream

    if is_stream(args.sources):
        return run_stream(args)
    args.pictures = [Path(source) for source in args.sources]
    if given := given_stream_options(args):
        raise UserError(f"{given[0]} goes with a video, a folder of pictures or a live source")
    return run_pictures(args)


def given_stream_options(args: argparse.Namespace) -> list[str]:
    """Return the options of videos and live sources, such as --boxes, that are not what they are when left out."""
    parser = argparse.ArgumentParser(add_help=False)
    add_stream_options(parser)
    given = [name for name, default in vars(parser.parse_args([])).items() if getattr(args, name) != default]
    return ["--boxes" if name == "boxes_file" else f"--{name.replace('_', '-')}" for name in given]


def run_pictures(args: argparse.Namespace) -> int:
    """Process pictures one by one and print what was written; returns the exit code."""
    from tqdm import tqdm

    from metro_edge.estimator import MeshEstimator
    from metro_edge.files import output_folder
    from metro_edge.postprocess import Intrinsics
    from metro_edge.preprocess import check_boxes, read_picture
    from metro_edge.results import model_description, write_results
    from metro_edge.smpl.fit import SHAPE_WEIGHT_MM2

    if args.boxes and len(args.pictures) > 1:
        raise UserError(f"--box goes with one picture, got {len(args.pictures)}: run them one by one")
    if args.smpl_parameters and args.smpl is None:
        raise UserError("--smpl-parameters needs --smpl PATH, your SMPL or MANO file or a folder with them")
    options = ("smpl", "smpl_gender", "smpl_shape_weight", "smpl_same_person")
    if not args.smpl_parameters and (given := [name for name in options if getattr(args, name)]):
        raise UserError(f"--{given[0].replace('_', '-')} goes with --smpl-parameters")
    if args.smpl_same_person and len(args.boxes or ()) > 1:
        raise UserError(f"--smpl-same-person takes one person a picture, got {len(args.boxes)} boxes")
    if args.camera_matrix is not None:
        Intrinsics.from_matrix(args.camera_matrix)  # raises before the network is loaded
    # All pictures are tried before the first result is written.
    for picture in args.pictures:
        frame = read_picture(picture)
        if args.boxes:
            check_boxes(args.boxes, frame.shape[:2])
    with MeshEstimator.from_bundle(
        args.bundle,
        args.precision,
        args.backend,
        threads=args.threads,
        focal_px=args.focal_px,
        crop_rule=args.crop_rule,
        affinity=args.affinity,
    ) as estimator:
        fitter = smpl_fitter(estimator.bundle, args)
        folder = output_folder(args.output)
        model = model_description(estimator)
        stems = unique_stems(args.pictures)
        todo = list(zip(args.pictures, stems, strict=True))
        weight = SHAPE_WEIGHT_MM2 if args.smpl_shape_weight is None else args.smpl_shape_weight
        together = fitted_together(estimator, fitter, args, weight) if fitter and args.smpl_same_person else None
        for number, (picture, stem) in enumerate(tqdm(todo, unit="picture", leave=False, disable=len(todo) < 2)):
            frame = read_picture(picture)
            if together is None:
                bodies = estimator(frame, args.boxes, args.camera_matrix)
                smpl = None if fitter is None else fitter.fit_bodies(bodies, weight)
            else:
                bodies, smpl = together[number]
            paths = write_results(folder, stem, picture.name, frame, bodies, model, args.side_by_side, smpl)
            people = "1 person" if len(bodies) == 1 else f"{len(bodies)} people"
            tqdm.write(f"{picture}: {people} -> {', '.join(str(path) for path in paths)}")
            if smpl is not None:
                errors = ", ".join(f"{value:.2f}" for value in smpl.error_mm)
                tqdm.write(f"{picture}: {smpl.model.upper()} refit error {errors} mm (mean vertex distance)")
    return 0


def smpl_fitter(bundle: Bundle, args: argparse.Namespace) -> SmplFitter | None:
    """Return the fitter that the options ask for; raises UserError."""
    if not args.smpl_parameters:
        return None
    from metro_edge.smpl.fit import SmplFitter

    return SmplFitter.for_bundle(bundle, args.smpl, args.smpl_gender or "neutral")


def fitted_together(
    estimator: MeshEstimator, fitter: SmplFitter, args: argparse.Namespace, shape_weight_mm2: float
) -> list[tuple[list[Body], SmplParameters]]:
    """Return per picture its one body and its parameters, with one shape for all; keeps no picture in memory."""
    from metro_edge.preprocess import read_picture

    bodies = [
        body for picture in args.pictures for body in estimator(read_picture(picture), args.boxes, args.camera_matrix)
    ]
    fitted = fitter.fit_bodies(bodies, shape_weight_mm2, share_betas=True)
    return [([body], fitted.only(i)) for i, body in enumerate(bodies)]


def unique_stems(paths: Sequence[Path]) -> list[str]:
    """Return each path's name without suffix, with -2, -3, ... where it came before."""
    stems: dict[str, None] = {}  # in their order; a list would be searched again and again
    for path in paths:
        stem, number = path.stem, 1
        while stem in stems:
            number += 1
            stem = f"{path.stem}-{number}"
        stems[stem] = None
    return list(stems)
