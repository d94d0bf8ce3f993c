"""Skinning, against linear blend skinning written out here."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import scipy.spatial.transform

from metro_edge.errors import MissingExtraError, UserError
from metro_edge.smpl.files import SmplFile, find_smpl, read_smpl
from metro_edge.smpl.model import CHUNK, SkinnedBody
from tests.smpl_files import metro_folder

TOLERANCE_M = 1e-5


@pytest.fixture(scope="module")
def smpl() -> SkinnedBody:
    return SkinnedBody(read_smpl(find_smpl(metro_folder())))


@pytest.fixture(scope="module")
def mano() -> SkinnedBody:
    return SkinnedBody(read_smpl(find_smpl(metro_folder(), kind="mano")))


def skinned(file: SmplFile, pose: np.ndarray, betas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SMPL, equations 2 to 4 of the paper, one body in float64: vertices (V, 3) and joints (K, 3)."""
    shaped = file.v_template.astype(float) + file.shapedirs[:, :, : len(betas)].astype(float) @ betas
    joints = file.joint_regressor.astype(float) @ shaped
    turns = scipy.spatial.transform.Rotation.from_rotvec(pose.reshape(-1, 3)).as_matrix()
    posed = shaped + file.posedirs.astype(float) @ (turns[1:] - np.eye(3)).ravel()
    world = []
    for k, parent in enumerate(file.parents):
        local = np.eye(4)
        local[:3, :3] = turns[k]
        local[:3, 3] = joints[k] - (joints[parent] if k else 0)
        world.append(world[parent] @ local if k else local)
    bind = np.tile(np.eye(4), (len(joints), 1, 1))
    bind[:, :3, 3] = -joints
    blended = np.einsum("vk,kij->vij", file.weights.astype(float), np.array(world) @ bind)
    return np.einsum("vij,vj->vi", blended[:, :3, :3], posed) + blended[:, :3, 3], np.array(world)[:, :3, 3]


def test_rest(smpl: SkinnedBody) -> None:
    betas = np.random.default_rng(0).normal(size=(1, 10)).astype(np.float32)
    file = smpl.file
    shaped = file.v_template + file.shapedirs @ betas[0]
    np.testing.assert_allclose(smpl.vertices(np.zeros((1, 72)), betas)[0], shaped, atol=TOLERANCE_M)
    np.testing.assert_allclose(
        smpl.joints(np.zeros((1, 72)), betas)[0], file.joint_regressor @ shaped, atol=TOLERANCE_M
    )


def test_one_joint_turns_what_hangs_on_it(smpl: SkinnedBody) -> None:
    pose = np.zeros((1, 24, 3))
    pose[0, 18, 1] = -np.pi / 2  # the left elbow, about the vertical: the forearm comes to the front
    rest, bent = (smpl.joints(p, np.zeros((1, 0)))[0] for p in (pose * 0, pose))
    np.testing.assert_allclose(bent[:20], rest[:20], atol=TOLERANCE_M)
    x, y, z = (rest[20] - rest[18]).astype(float)
    np.testing.assert_allclose(bent[20] - bent[18], (-z, y, x), atol=TOLERANCE_M)
    flat = smpl.vertices(pose.reshape(1, 72), np.zeros((1, 10)))
    np.testing.assert_array_equal(flat, smpl.vertices(pose, np.zeros((1, 10))))


def test_random_poses(smpl: SkinnedBody) -> None:
    rng = np.random.default_rng(1)
    pose, betas = rng.normal(scale=0.6, size=(3, 72)), rng.normal(size=(3, 10))
    vertices, joints = smpl.vertices(pose, betas), smpl.joints(pose, betas)
    assert (vertices.shape, vertices.dtype, joints.shape) == ((3, 6890, 3), np.float32, (3, 24, 3))
    for i in range(3):
        expected = skinned(smpl.file, pose[i], betas[i])
        np.testing.assert_allclose(vertices[i], expected[0], atol=TOLERANCE_M)
        np.testing.assert_allclose(joints[i], expected[1], atol=TOLERANCE_M)


def test_hands_add_their_mean_pose(mano: SkinnedBody) -> None:
    rng = np.random.default_rng(2)
    pose, betas = rng.normal(scale=0.5, size=(2, 48)), rng.normal(size=(2, 10))
    mean = np.concatenate([np.zeros(3), mano.file.hands_mean])
    for i in range(2):
        expected = skinned(mano.file, pose[i] + mean, betas[i])
        np.testing.assert_allclose(mano.vertices(pose, betas)[i], expected[0], atol=TOLERANCE_M)
        np.testing.assert_allclose(mano.joints(pose, betas)[i], expected[1], atol=TOLERANCE_M)
    flat = mano.vertices(-mean[None], np.zeros((1, 10)))[0]
    np.testing.assert_allclose(flat, mano.file.v_template, atol=TOLERANCE_M)


def test_batches_longer_than_a_chunk_and_empty_ones(mano: SkinnedBody) -> None:
    pose = np.random.default_rng(3).normal(scale=0.3, size=(CHUNK + 3, 48))
    betas = np.zeros((len(pose), 4))
    vertices = mano.vertices(pose, betas)
    np.testing.assert_allclose(vertices[-1], mano.vertices(pose[-1:], betas[-1:])[0], atol=1e-6)
    assert mano.vertices(pose[:0], betas[:0]).shape == (0, 778, 3)
    assert mano.joints(pose[:0], betas[:0]).shape == (0, 16, 3)


def test_the_model_knows_its_kind(smpl: SkinnedBody, mano: SkinnedBody) -> None:
    assert (smpl.pose_size, mano.pose_size) == (72, 48)
    assert (smpl.model.model_name, mano.model.model_name) == ("smpl", "mano")
    assert (len(smpl.model.joint_names), smpl.model.joint_names[0]) == (24, "pelvis")
    assert (len(mano.model.joint_names), mano.model.joint_names[0]) == (16, "wrist")


def test_bad_input(mano: SkinnedBody) -> None:
    for pose, betas, message in (
        (np.zeros((1, 72)), np.zeros((1, 10)), r"a pose of MANO is \(N, 48\), got \(1, 72\)"),
        (np.zeros(48), np.zeros((1, 10)), r"got \(48,\)"),
        (np.zeros((1, 15, 3)), np.zeros((1, 10)), r"got \(1, 15, 3\)"),
        (np.zeros((2, 48)), np.zeros((1, 10)), r"betas for 2 poses are \(2, up to 10\), got \(1, 10\)"),
        (np.zeros((1, 48)), np.zeros((1, 11)), r"up to 10\), got \(1, 11\)"),
        (np.zeros((1, 48)), np.zeros(10), r"got \(10,\)"),
    ):
        for method in (mano.vertices, mano.joints):
            with pytest.raises(UserError, match=message):
                method(pose, betas)


def test_without_smplfitter(mano: SkinnedBody, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smplfitter.np", None)
    with pytest.raises(MissingExtraError, match=r"metro-edge\[smpl\]"):
        SkinnedBody(mano.file)


def test_every_body_of_several_chunks_is_posed(mano: SkinnedBody) -> None:
    count = 2 * CHUNK + 3
    pose = np.zeros((count, mano.pose_size), np.float32)
    pose[:, 0] = np.linspace(0, 1, count)
    together = mano.vertices(pose, np.zeros((count, 0)))
    for k in (0, CHUNK - 1, CHUNK, 2 * CHUNK, count - 1):
        np.testing.assert_allclose(together[k], mano.vertices(pose[k : k + 1], np.zeros((1, 0)))[0], atol=1e-6)
