"""Bodies by name: templates for the network's mesh levels and joint regressors."""

from __future__ import annotations

from pathlib import Path

from metro_edge.errors import UserError
from metro_edge.template import BodyTemplate
from training.bodies.anny import load_anny_template

BUILT_IN = ("anny",)


def body_template(name: str, path: str | Path = "") -> BodyTemplate:
    """Return the template of the body called `name`.

    Args:
        name: `anny`, or what the file at `path` holds.
        path: a template file written by `BodyTemplate.save`; empty for a built-in body.

    Raises:
        UserError: an unknown body, or a file of another one.
    """
    if not path:
        if name not in BUILT_IN:
            raise UserError(f"unknown body {name!r}; built in: {', '.join(BUILT_IN)}; others need a path, {name}=PATH")
        return load_anny_template()
    template = BodyTemplate.load(path)
    if template.name != name:
        raise UserError(f"{path} holds the body {template.name!r}, not {name!r}")
    return template
