"""Bodies that training knows: each gives a BodyTemplate, the network's mesh levels and joint regressors."""

from __future__ import annotations

from collections.abc import Callable

from metro_edge.errors import UserError
from metro_edge.template import BodyTemplate
from training.bodies.anny import load_anny_template

BODIES: dict[str, Callable[[], BodyTemplate]] = {"anny": load_anny_template}


def body_template(name: str) -> BodyTemplate:
    """Return the template of the body called `name`; raises UserError for an unknown one."""
    if name not in BODIES:
        raise UserError(f"unknown body {name!r}; known: {', '.join(BODIES)}")
    return BODIES[name]()
