"""`metro-edge view`: a source's people in the browser, live."""

from __future__ import annotations

import argparse
import signal
from typing import Any

from metro_edge.cli.run import add_camera_options, add_model_options, add_people_options, parse_box


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "view",
        help="watch the people of a video, camera or stream in the browser",
        description="Serve a page with the video, the moving meshes in 3D, a table of joints and charts of times. It "
        "listens to this machine alone unless --host says otherwise. Ctrl-C ends it.",
    )
    parser.add_argument(
        "sources", metavar="SOURCE", nargs=1, help="video file, folder of pictures, picture, camera number or address"
    )
    parser.add_argument("--box", metavar="X,Y,W,H", dest="boxes", action="append", type=parse_box,
                        help="a person's box in all frames, once per person")  # fmt: skip
    add_model_options(parser)
    parser.add_argument("--precision", metavar="P", default="fp32", help="fp32, fp16 or int8 (default: fp32)")
    add_camera_options(parser)
    add_people_options(parser)
    parser.add_argument(
        "--host", metavar="H", default="127.0.0.1", help="0.0.0.0 for the whole network (default: this machine alone)"
    )
    parser.add_argument("--port", metavar="N", type=int, default=8080, help="of the page (default: 8080)")
    parser.add_argument("--loop", action="store_true", help="begin a file again at its end")
    parser.add_argument("--exit", action="store_true", help="end with the source instead of keeping the page open")
    parser.set_defaults(run=run, crop_rule=None)


def run(args: argparse.Namespace) -> int:
    """Serve until the source ends or a signal comes; returns the exit code."""
    from metro_edge.cli._streaming import open_stream
    from metro_edge.video.showing import show
    from metro_edge.video.viewer import Viewer

    with open_stream(args) as stream:
        template = stream.estimator.bundle.template
        with Viewer(template, args.host, args.port, stream.source.name) as viewer:
            print(f"{stream.source.name}: open {viewer.address} in a browser; Ctrl-C ends it", flush=True)
            ended_by = show(stream, viewer, args.loop, keep_open=not args.exit)
    if ended_by is None:
        return 0
    print(f"ended by {signal.Signals(ended_by).name}")
    return 0 if ended_by == signal.SIGINT else 128 + ended_by
