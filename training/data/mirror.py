"""The mirror image of a body's mesh: which vertex lies where another one does, seen in a mirror."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from metro_edge.smpl.files import SmplFile
from metro_edge.template import BodyTemplate
from training.bodies.fit import nearest


def mesh_mirror(template: BodyTemplate | None = None, model: SmplFile | None = None) -> NDArray[np.intp]:
    """Return (V,) indices: mirrored vertices are vertices[mirror] * (-1, 1, 1); `template` None means Anny.

    The map that the SMPL file `model` of the template has, else each vertex's nearest in the mirrored rest pose, made
    an involution: vertices that coincide with another (inside Anny's mouth, a few of 13,718) may be taken for it.
    """
    if model is not None and model.mirror is not None:
        return model.mirror.astype(np.intp)
    if template is not None:
        return _mirror_of(template)
    return _anny_mirror()


@lru_cache(maxsize=1)
def _anny_mirror() -> NDArray[np.intp]:
    from training.bodies.anny import load_anny_template

    return _mirror_of(load_anny_template())


def _mirror_of(template: BodyTemplate) -> NDArray[np.intp]:
    rest = template.vertices
    _, index = nearest(rest, rest * np.array([-1, 1, 1], np.float32))
    mirror = np.array(index[:, 0], np.intp)
    own = np.arange(len(mirror))
    paired = mirror[mirror] == own
    # What has no partner of its own stands near one that has: take that pair's mirror, which is as good.
    mirror[~paired] = mirror[mirror[mirror[~paired]]]
    return mirror
