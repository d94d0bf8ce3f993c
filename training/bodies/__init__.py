"""Bodies by name: templates for the network's mesh levels and joint regressors."""

from __future__ import annotations

from pathlib import Path

from metro_edge.errors import UserError
from metro_edge.template import BodyTemplate
from training.bodies.anny import load_anny_template

BUILT_IN = ("anny",)


def parse_body(text: str) -> tuple[str, str]:
    """Return name and path of `NAME=PATH`, as command lines take a body; raises UserError for other text."""
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise UserError(f"a body is given as NAME=PATH, such as smpl=FOLDER, got {text!r}")
    return name, path


def body_template(name: str, path: str | Path = "") -> BodyTemplate:
    """Return the template of the body called `name`.

    Args:
        name: `anny`, `smpl`, `mano`, or what the file at `path` holds.
        path: a template file written by `BodyTemplate.save`, or for `smpl` and `mano` a folder with the files of
            METRO's metro/modeling/data, see `training.bodies.smpl`; empty for a built-in body.

    Raises:
        UserError: an unknown body, a file of another one, or files that are missing or wrong.
    """
    if not path:
        if name not in BUILT_IN:
            raise UserError(f"unknown body {name!r}; built in: {', '.join(BUILT_IN)}; others need a path, {name}=PATH")
        return load_anny_template()
    if Path(path).is_dir():
        from training.bodies.smpl import template_from_folder

        return template_from_folder(name, path)
    template = BodyTemplate.load(path)
    if template.name != name:
        raise UserError(f"{path} holds the body {template.name!r}, not {name!r}")
    return template
