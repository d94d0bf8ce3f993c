"""The pose sampler: anatomy, symmetry, repeatability."""

from __future__ import annotations

import numpy as np
import pytest

from metro_edge.errors import UserError
from training.data.anatomy import penetration_m
from training.data.generator import pose_bodies, sample_phenotype
from training.data.mirror import mesh_mirror
from training.data.poser import Poser, toward
from training.data.poses import FAMILIES, sample_pose


def poses(rig, family, count=12):
    return [sample_pose(rig, np.random.default_rng([9, k]), family)[0] for k in range(count)]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_family_gives_sane_poses(rig, family):
    for pose in poses(rig, family):
        assert np.allclose(pose @ pose.transpose(0, 2, 1), np.eye(3), atol=1e-6)
        assert np.allclose(np.linalg.det(pose), 1, atol=1e-6)
        heads, turns = rig.forward(pose)
        assert penetration_m(rig, pose) < 0.08
        for (kind, side), limb in rig.limbs.items():
            upper, fore = heads[limb.lower] - heads[limb.upper], heads[limb.end] - heads[limb.lower]
            hinge = turns[limb.upper_twist] @ limb.hinge
            bend = np.degrees(np.arctan2(np.cross(upper, fore) @ hinge, upper @ fore))
            assert -1 <= bend <= 151, f"{family}: {side} {kind} bends by {bend:.0f} degrees"


def test_families_differ(rig):
    height = {
        f: np.mean([np.ptp(rig.forward(p)[0][:, 2]) for p in poses(rig, f)]) for f in ("stand", "lie", "sit_chair")
    }
    assert height["stand"] > 1.2 and height["lie"] < 0.9 and height["sit_chair"] < height["stand"]


def test_a_mirrored_pose_mirrors_the_vertices(rig):
    mirror = mesh_mirror()
    pose, _ = sample_pose(rig, np.random.default_rng(3), "throw")
    phenotype = sample_phenotype(np.random.default_rng(4))
    plain, mirrored = pose_bodies(np.stack([pose, rig.mirrored(pose)]), np.stack([phenotype, phenotype]))
    assert np.linalg.norm(plain[mirror] * [-1, 1, 1] - mirrored, axis=1).max() < 2e-3
    assert np.linalg.norm(plain - mirrored, axis=1).mean() > 0.05
    np.testing.assert_allclose(rig.mirrored(rig.mirrored(pose)), pose)


def test_left_and_right_are_alike_in_the_population(rig):
    heights = []
    for k in range(300):
        heads, _ = rig.forward(sample_pose(rig, np.random.default_rng([1, k]), None)[0])
        heights.append([heads[rig.index["wrist.L"], 2], heads[rig.index["wrist.R"], 2]])
    left, right = np.mean(heights, axis=0)
    assert abs(left - right) < 4 * np.std(heights) / np.sqrt(300)


def test_the_same_state_gives_the_same_pose(rig):
    a, b, c = (sample_pose(rig, np.random.default_rng(k)) for k in (1, 1, 2))
    assert a[1] == b[1] and np.array_equal(a[0], b[0]) and not np.array_equal(a[0], c[0])


def test_unknown_family_is_named(rig):
    with pytest.raises(UserError, match=r"unknown pose family 'moonwalk'; known: stand"):
        sample_pose(rig, np.random.default_rng(0), "moonwalk")


@pytest.mark.parametrize("side", ["L", "R"])
def test_limbs_reach_their_targets(rig, side):
    poser = Poser(rig)
    poser.root(10, 5, 0)
    limb = rig.limbs["leg", side]
    target = toward(side, 0.1, 0.3, -0.7)
    poser.leg_to(side, target, toward(side, 0, 1, 0))
    poser.plant(side)
    heads, turns = rig.forward(poser.pose)
    np.testing.assert_allclose(heads[limb.end] - heads[limb.upper], target * sum(limb.lengths), atol=0.01)
    assert turns[limb.end][2, 2] > 0.95  # the sole lies level
    limb = rig.limbs["arm", side]
    target = toward(side, 0.1, 0.6, 0.2)
    poser.arm_to(side, target, toward(side, 0.5, 0, -1))
    heads, turns = rig.forward(poser.pose)
    local = turns[rig.index["spine01"]].T @ (heads[limb.end] - heads[limb.upper])
    np.testing.assert_allclose(local, target * sum(limb.lengths), atol=0.02)
