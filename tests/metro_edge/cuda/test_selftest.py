"""The selftest of the kernels: it passes on ours, and sees one that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from metro_edge.cuda.loading import KernelLoader
from metro_edge.cuda.selftest import CHECKS, checks
from metro_edge.selftest import FAILED, PASSED

pytestmark = pytest.mark.gpu


def test_our_kernels_pass(device):
    results = list(checks(device.loader))
    assert [r.name for r in results] == [f"kernels {name}" for name in CHECKS]
    assert {r.state for r in results} == {PASSED}, [r.note for r in results]


class Broken(KernelLoader):
    """The kernels of another loader, of which one does nothing."""

    def __init__(self, loader: KernelLoader, kernel: str):
        super().__init__()
        self.loader, self.kernel = loader, kernel

    def function(self, file, kernel):
        return (lambda *_, **__: None) if kernel == self.kernel else self.loader.function(file, kernel)


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("crop_boxes", "crop"), ("regress", "postprocess"), ("place", "postprocess"), ("centre", "postprocess"),
        ("one_euro", "smoothing"), ("vertex_normals", "normals"), ("shade", "overlay"), ("blend_meshes", "overlay"),
    ],
)  # fmt: skip
def test_a_kernel_that_does_nothing_fails(device, kernel, group):
    found = {}
    rows = checks(Broken(device.loader, kernel))
    with np.errstate(all="ignore"):
        try:
            found = {r.name: r.state for r in rows}
        except Exception:  # a status that says so is as good: check_kernels makes a failure of it
            return
    assert found[f"kernels {group}"] == FAILED
