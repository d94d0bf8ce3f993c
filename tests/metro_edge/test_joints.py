from __future__ import annotations

import numpy as np
import pytest

from metro_edge.errors import UserError
from metro_edge.joints import JOINT_SETS, joint_set


@pytest.mark.parametrize("joints", JOINT_SETS.values(), ids=JOINT_SETS)
def test_sets_are_consistent(joints):
    assert len(set(joints.names)) == len(joints) == len(joints.mirror)
    assert joint_set(joints.name) is joints
    assert [joints.mirror[i] for i in joints.mirror] == list(range(len(joints)))
    connected = {i for bone in joints.bone_indices for i in bone}
    assert connected <= set(range(len(joints)))
    mirrored = {frozenset(joints.mirror[i] for i in bone) for bone in joints.bone_indices}
    assert mirrored == {frozenset(bone) for bone in joints.bone_indices}


def test_sizes_and_known_orders():
    sizes = {name: len(s) for name, s in JOINT_SETS.items()}
    assert sizes == {"h36m14": 14, "h36m17": 17, "coco17": 17, "freihand21": 21, "j24": 24}
    h36m = joint_set("h36m14")
    assert h36m.root_indices == (2, 3) and h36m.names[13] == "head_top"  # METRO's mid-hip of joints 2 and 3
    h36m17 = joint_set("h36m17")  # METRO's H36M_J17_TO_J14
    assert [h36m17.index(name) for name in h36m.names] == [3, 2, 1, 4, 5, 6, 16, 15, 14, 11, 12, 13, 8, 10]
    j24 = joint_set("j24")  # the rows of METRO's labels that its 14 joints are: 0 to 12 and 18
    assert [j24.index(name) for name in h36m.names] == [*range(13), 18]
    assert j24.mirror == (5, 4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 12, 13, 14, 15, 16, 17, 18, 19, 21, 20, 23, 22)
    assert joint_set("coco17").names[0] == "nose" and joint_set("freihand21").root_indices == (0,)


def test_root_is_the_mean_of_the_roots():
    points = np.random.default_rng(0).normal(size=(5, 14, 3))
    np.testing.assert_allclose(joint_set("h36m14").root_of(points), points[:, 2:4].mean(axis=1))


def test_unknown_names():
    with pytest.raises(UserError, match="unknown joint set 'h36m15'; known: h36m14"):
        joint_set("h36m15")
    with pytest.raises(UserError, match="has no joint 'tail'; it has right_ankle"):
        joint_set("h36m14").index("tail")
