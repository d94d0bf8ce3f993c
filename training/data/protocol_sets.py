"""The data set of a protocol, from whichever files the user has: METRO's TSV sets, the data sets' own, or none."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.data.freihand import FreiHand, is_freihand_folder
from training.data.labelled import LabelledSet
from training.protocols import PLACEHOLDERS, Protocol

TSV_SUFFIXES = (".yaml", ".yml")
OWN_KINDS = {"human36m": ("human36m-p2",), "3dpw": ("3dpw-neutral", "3dpw-gendered")}


def open_protocol_set(
    protocol: Protocol,
    path: str | os.PathLike[str],
    spec: ModelSpec,
    template: BodyTemplate,
    *,
    smpl: str | os.PathLike[str] = "",
    seed: int = 2,
    count: int | None = None,
    skip_bad: bool = False,
) -> tuple[LabelledSet, Protocol]:
    """Open the pictures of a protocol.

    Args:
        protocol: which.
        path: METRO's .yaml, or the folder of the data set's own files; empty for generated people.
        spec, template: of the network and its body.
        smpl: folder with the SMPL or MANO model files, which labels in pose and shape need.
        seed, count: of generated people.
        skip_bad: step over unusable files and rows where the set is opened.

    Returns:
        the set, and the protocol, in which metrics are undefined that these files cannot give.

    Raises:
        UserError: no data given, data of another set, or what the set finds wrong.
    """
    if protocol.name == "generated":
        return _generated(path, spec, template, seed, count), protocol
    if not str(path):
        raise UserError(f"protocol {protocol.name} needs its data: {protocol.data}; give --data PATH")
    if not Path(path).exists():
        raise UserError(f"there is no data at {path}")
    if protocol.name == "freihand":
        return _freihand(protocol, path, spec, template, smpl, skip_bad)
    if Path(path).suffix in TSV_SUFFIXES:
        return _tsv(protocol, path, spec, template, smpl), protocol
    from training.data.own_sets import open_set, own_kind

    kind = own_kind(path)
    if protocol.name not in OWN_KINDS.get(kind, ()):
        found = f"it holds {kind}" if kind else "it holds neither METRO's .yaml nor a data set's own files"
        raise UserError(f"{path} is not data for protocol {protocol.name}: {found}")
    return open_set(protocol.name, path, spec, template, smpl=smpl, skip_bad=skip_bad), protocol


def _generated(
    path: str | os.PathLike[str], spec: ModelSpec, template: BodyTemplate, seed: int, count: int | None
) -> LabelledSet:
    from training.data.generated import GeneratedPictures

    if str(path):
        raise UserError(f"generated people are rendered from a seed, not read from {path}: leave --data away")
    return GeneratedPictures(seed, 500 if count is None else count, spec, template)


def _freihand(
    protocol: Protocol,
    path: str | os.PathLike[str],
    spec: ModelSpec,
    template: BodyTemplate,
    smpl: str | os.PathLike[str],
    skip_bad: bool,
) -> tuple[LabelledSet, Protocol]:
    if skip_bad:
        raise UserError("FreiHAND's submission needs every picture in order: --skip-bad cannot be used with it")
    placeholders = dataclasses.replace(protocol, undefined=dict.fromkeys(protocol.metrics, PLACEHOLDERS))
    if Path(path).suffix in TSV_SUFFIXES:
        return _tsv(placeholders, path, spec, template, smpl), placeholders
    if not is_freihand_folder(path):
        raise UserError(f"{path} is not data for protocol freihand: it has neither evaluation/rgb nor METRO's .yaml")
    people = FreiHand(path, spec)
    return people, protocol if people.labelled else placeholders


def _tsv(
    protocol: Protocol,
    path: str | os.PathLike[str],
    spec: ModelSpec,
    template: BodyTemplate,
    smpl: str | os.PathLike[str],
) -> LabelledSet:
    from training.bodies.smpl import skinned_body
    from training.data.metro_sets import MetroTsvSet

    if set(protocol.undefined) & {"mpvpe", "pa_mpvpe"}:
        return MetroTsvSet(path, spec, template, meshes=False)
    if not str(smpl):
        raise UserError(f"protocol {protocol.name} compares with meshes: name the folder of your SMPL files, --smpl")
    if protocol.name.endswith("-gendered"):
        bodies = {gender: skinned_body(Path(smpl), gender) for gender in ("male", "female")}
        return MetroTsvSet(path, spec, template, bodies)
    return MetroTsvSet(path, spec, template, skinned_body(Path(smpl)))
