"""`python -m training body`: make a body's template file and report how well its parts fit."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from metro_edge.errors import UserError

BODIES = ("anny", "smpl", "mano")


def add_parser(subparsers: Any) -> None:
    """Add the command to `subparsers`, what `ArgumentParser.add_subparsers` returned."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "body",
        help="make a body's template file: Anny anew, or SMPL or MANO from your own files",
        description="Make a body's template file and report how well its parts fit. SMPL and MANO are made from the "
        "files of their authors and of METRO, which you must have: name the folder, or each file.",
    )
    parser.add_argument("body", nargs="?", choices=BODIES, default="anny")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--folder", type=Path, help="with the files below, such as METRO's metro/modeling/data")
    parser.add_argument("--model", type=Path, help="SMPL or MANO model, .pkl or .npz")
    parser.add_argument("--downsampling", type=Path, help="mesh_downsampling.npz or mano_downsampling.npz of METRO")
    parser.add_argument("--regressor", type=Path, help="J_regressor_h36m_correct.npy of METRO (smpl)")
    parser.add_argument("--gender", default="neutral", help="of the SMPL model looked for in --folder")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the template and print its errors."""
    given = [name for name in ("folder", "model", "downsampling", "regressor") if getattr(args, name) is not None]
    if args.body == "anny":
        if given:
            raise UserError(f"--{given[0]} belongs to smpl and mano: python -m training body smpl --{given[0]} ...")
        from training.bodies.anny import build_anny_template

        template, errors = build_anny_template()
    else:
        from training.bodies.smpl import upsampling_errors

        template = _template(args)
        errors = upsampling_errors(template)
    template.save(args.output)
    print(f"{template.name}: levels {template.level_sizes}, {args.output.stat().st_size / 1e6:.2f} MB")
    for name, error in errors.items():
        print(f"{name:34s} {error:6.2f} mm")
    if template.licence:
        print(f"licence: {template.licence}")
    return 0


def _template(args: argparse.Namespace) -> Any:
    from metro_edge.smpl.files import find_file, find_smpl, read_downsampling, read_h36m_regressor, read_smpl
    from training.bodies import smpl

    needed = ("model", "downsampling", "regressor") if args.body == "smpl" else ("model", "downsampling")
    missing = [f"--{name}" for name in needed if getattr(args, name) is None]
    if missing and args.folder is None:
        raise UserError(f"body {args.body} needs {' and '.join(missing)}, or --folder with those files")
    model = read_smpl(args.model or find_smpl(args.folder, args.gender, args.body))
    if args.body == "mano":
        path = args.downsampling or find_file(args.folder, smpl.MANO_DOWNSAMPLING)
        return smpl.mano_template(model, read_downsampling(path, smpl.MANO_LEVELS))
    path = args.downsampling or find_file(args.folder, smpl.SMPL_DOWNSAMPLING)
    levels = read_downsampling(path, smpl.SMPL_LEVELS)
    regressor = read_h36m_regressor(args.regressor or find_file(args.folder, smpl.H36M_REGRESSOR))
    return smpl.smpl_template(model, levels, regressor)
