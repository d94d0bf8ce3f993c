"""`metro-edge info`: what a bundle holds, where it comes from and what it loses."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metro_edge.cli import printable as printable  # as others take it from here

if TYPE_CHECKING:
    from metro_edge.bundle import Bundle


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "info",
        help="what a bundle holds, where it comes from and what it loses",
        description="Check every file of a bundle against its hash, and print the network, the precisions with the "
        "millimetres they lose, hashes, versions and licences.",
    )
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", type=Path, help="folder or .zip (default: the shipped)")
    parser.add_argument("--json", action="store_true", help="print spec and passport in JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check and print; returns the exit code."""
    from metro_edge.bundle import Bundle

    bundle = Bundle.load(args.bundle)
    for precision in bundle.precisions:
        bundle.onnx_bytes(precision)
    if args.json:
        print(json.dumps({"spec": json.loads(bundle.spec.to_json()), "passport": bundle.passport}, indent=2))
        return 0
    for name, value in described(bundle):
        print(printable(f"{name:<12} {value}"))
    print()
    print(precision_table(bundle))
    return 0


def described(bundle: Bundle) -> list[tuple[str, str]]:
    """Return name and text of what a bundle is and where it comes from."""
    spec, passport = bundle.spec, bundle.passport
    lines = [
        ("network", f"{spec.name}, {spec.image_size} px, crop rule {spec.crop_rule}"),
        ("outputs", ", ".join(spec.outputs)),
        ("body", f"{spec.body}, {spec.vertex_count:,} vertices, joints {spec.joint_set}"),
        ("checkpoint", f"{passport['checkpoint']['name']}, SHA-256 {passport['checkpoint']['sha256'] or 'not known'}"),
        *(("licence", f"of the {what}: {text}") for what, text in passport["licences"].items()),
        ("made with", ", ".join(f"{name} {version}" for name, version in passport["versions"].items())),
    ]
    if calibration := passport.get("calibration"):
        what = f"{calibration.get('samples', '?')} images of {calibration.get('data', 'unknown data')}"
        method = calibration.get("method", "not stated")
        lines.append(
            ("calibrated", f"{what}, method {method}, SHA-256 {calibration.get('images_sha256', 'not known')}")
        )
    if folds := passport.get("folds"):
        lines.append(("folded", ", ".join(str(fold["name"]) for fold in folds.get("folds", []))))
    if measured := passport.get("accuracy") or passport.get("verification"):
        lines.append(("measured on", f"{measured.get('samples', '?')} samples, {measured.get('data', 'not stated')}"))
        lines.append(("protocol", str(measured.get("protocol", "not stated"))))
    return lines


def precision_table(bundle: Bundle) -> str:
    """Return the table of precisions: size, hash and millimetres."""
    from metro_edge.bundle import onnx_file
    from metro_edge.tables import text_table

    measured = bundle.passport.get("accuracy") or bundle.passport.get("verification") or {}
    keys = ("moved_mm", "mpjpe_mm", "mpjpe_lost_mm", "mpvpe_mm", "mpvpe_lost_mm")
    header = ["precision", "MB", "SHA-256", *(key.removesuffix("_mm").replace("_", " ") + " mm" for key in keys)]
    rows = []
    for precision in bundle.precisions:
        entry = bundle.passport["files"][onnx_file(precision)]
        values = measured.get("precisions", {}).get(precision, {})
        size = f"{entry['bytes'] / 1e6:.1f}" if "bytes" in entry else "-"
        cells = [f"{float(values[key]):.3f}" if key in values else "-" for key in keys]
        rows.append([precision, size, str(entry["sha256"])[:12], *cells])
    return text_table(header, rows)
