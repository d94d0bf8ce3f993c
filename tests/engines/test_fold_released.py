"""Released networks in full size: folded, with all outputs, they answer as the original implementation did."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from engines.fold import FOLDS, LIMIT, fold
from engines.fold.run import ROUNDINGS
from metro_edge.spec import KNOWN_OUTPUTS
from tests.reference_weights import reference_images
from tests.released_files import body_with, write_reference
from training.checkpoint import load_any
from training.model import preset

# Multiply-adds of one image, in millions: as trained, and folded with all outputs.
EXPECTED = {
    "metro_body_resnet50": (31613.3, 30304.7),
    "metro_body_hrnet_w64": (56443.5, 55110.9),
    "metro_hand_hrnet_w64": (41871.5, 41156.9),
}


@pytest.mark.slow
@pytest.mark.parametrize("network", list(EXPECTED))
@torch.no_grad()
def test_folded_equals_the_released_code(network, tmp_path):
    config = preset(network)
    reference = write_reference(tmp_path / "state_dict.bin", network)
    template = body_with(config, reference["template_joints"], reference["template_vertices"])
    folded, report = fold(load_any(tmp_path / "state_dict.bin", template).model, template, outputs=KNOWN_OUTPUTS)
    (tmp_path / "state_dict.bin").unlink()  # nearly a GB
    print(f"\n{network}\n{report}")
    assert [result.name for result in report.results] == list(FOLDS)
    # Where a CPU's kernels round otherwise, one fold may be beyond the limit: `fold` has then proved it in float64.
    most = LIMIT if report.rounding is None else ROUNDINGS * report.rounding
    assert report.difference <= most < 1e-4 and all(result.difference <= most for result in report.results)
    assert (report.macs_before / 1e6, report.macs_after / 1e6) == pytest.approx(EXPECTED[network], abs=0.1)
    images = torch.from_numpy(reference_images(2, int(reference["image_seed"])))
    found = dict(zip(KNOWN_OUTPUTS, folded(images), strict=True))
    full = f"vertices_{config.vertex_levels[-1]}"
    for name, wanted in (("camera", "camera"), ("joints", "joints"), ("vertices", full)):
        expected = reference[wanted]
        # The reference itself differs from our unfolded network by a few millionths.
        assert np.abs(found[name].numpy() - expected).max() <= 2 * LIMIT * np.abs(expected).max(), name
    joints = template.joints(config.joint_set, reference[full])
    assert np.abs(found["mesh_joints"].numpy() - joints).max() <= 2 * LIMIT * np.abs(joints).max()
