from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from metro_edge.body import Body
from metro_edge.errors import UserError
from metro_edge.smpl.files import find_smpl, read_smpl
from metro_edge.smpl.fit import SmplFitter, SmplParameters
from metro_edge.smpl.model import SkinnedBody
from metro_edge.smpl.refine import Pose, Skinning
from metro_edge.spec import OUTPUT_NAMES
from tests.smpl_files import metro_folder


@pytest.fixture(scope="module")
def hand() -> SmplFitter:
    return SmplFitter(SkinnedBody(read_smpl(find_smpl(metro_folder(), kind="mano"))))


@pytest.fixture(scope="module")
def person() -> SmplFitter:
    return SmplFitter(SkinnedBody(read_smpl(find_smpl(metro_folder()))))


def made(fitter: SmplFitter, count: int, seed: int = 0, bend: float = 0.4):
    """Random poses turned anyhow, shapes and translations, and their vertices (N, V, 3)."""
    rng = np.random.default_rng(seed)
    pose = rng.normal(scale=bend, size=(count, len(fitter.body.file.parents), 3))
    pose[:, 0] = rng.normal(scale=2, size=(count, 3))
    pose = pose.reshape(count, -1)
    betas = rng.normal(size=(count, 10))
    translation = rng.normal((0, 0, 4), size=(count, 3))
    vertices = fitter.body.vertices(pose, betas) + translation[:, None]
    return pose, betas, translation, vertices


def rebuilt(fitter: SmplFitter, found: SmplParameters) -> np.ndarray:
    return fitter.body.vertices(found.pose, found.betas) + found.translation[:, None]


def distance_mm(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 1000 * np.linalg.norm(a - b, axis=-1).mean(-1)


def turned_deg(fitter: SmplFitter, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angles between the joints' rotations; axis-angle itself has two vectors for a half turn."""
    mean = fitter.body.file.hands_mean
    offset = 0 if mean is None else np.concatenate([np.zeros(3), mean])
    pairs = zip((a + offset).reshape(-1, 3), (b + offset).reshape(-1, 3), strict=True)
    return np.array(
        [np.degrees(np.linalg.norm(cv2.Rodrigues(cv2.Rodrigues(x)[0].T @ cv2.Rodrigues(y)[0])[0])) for x, y in pairs]
    )


def test_a_hands_parameters_come_back(hand):
    pose, betas, translation, vertices = made(hand, 6)
    found = hand.fit(vertices, shape_weight_mm2=0)
    assert found.pose.shape == (6, 48) and found.betas.shape == (6, 10) and found.translation.shape == (6, 3)
    assert {found.pose.dtype, found.betas.dtype, found.translation.dtype, found.error_mm.dtype} == {np.dtype("f4")}
    assert (found.model, found.gender, found.model_sha256) == ("mano", "", hand.body.file.sha256)
    assert found.error_mm.max() < 0.01
    np.testing.assert_allclose(distance_mm(rebuilt(hand, found), vertices), found.error_mm, atol=1e-3)
    np.testing.assert_allclose(found.betas, betas, atol=1e-2)
    np.testing.assert_allclose(found.translation, translation, atol=1e-4)
    assert turned_deg(hand, found.pose, pose).max() < 0.1


def test_a_persons_parameters_come_back_upright_in_camera_axes(person):
    _, betas, translation, _ = made(person, 1, seed=3)
    pose = np.random.default_rng(4).normal(scale=0.3, size=(1, 72))
    pose[:, :3] = (np.pi, 0, 0)  # SMPL has y up, the camera y down: METRO's rest pose
    vertices = person.body.vertices(pose, betas) + translation[:, None]
    found = person.fit(vertices)
    assert found.pose.shape == (1, 72)
    assert found.error_mm[0] < 0.5
    assert distance_mm(rebuilt(person, found), vertices)[0] == pytest.approx(found.error_mm[0], abs=1e-3)
    np.testing.assert_allclose(found.betas, betas, atol=0.1)
    np.testing.assert_allclose(found.translation, translation, atol=1e-3)
    assert turned_deg(person, found.pose, pose).max() < 0.5


def test_noise_of_5_mm_averages_out(hand):
    _, betas, _, vertices = made(hand, 4, seed=1)
    noise = np.random.default_rng(0).normal(scale=5e-3 / np.sqrt(8 / np.pi), size=vertices.shape)
    found = hand.fit(vertices + noise)
    assert distance_mm(noise, 0) == pytest.approx(5, rel=0.05)
    assert np.all((found.error_mm > 4) & (found.error_mm < 5.5))
    assert distance_mm(rebuilt(hand, found), vertices).max() < 1.5
    assert np.abs(found.betas - betas).max() < 0.5


@pytest.mark.slow
def test_noise_of_5_mm_on_a_person(person):
    _, betas, _, vertices = made(person, 2, seed=1)
    noise = np.random.default_rng(0).normal(scale=5e-3 / np.sqrt(8 / np.pi), size=vertices.shape)
    found = person.fit(vertices + noise)
    assert np.all((found.error_mm > 4) & (found.error_mm < 5.5))
    assert distance_mm(rebuilt(person, found), vertices).max() < 1.5
    assert np.abs(found.betas - betas).max() < 0.3


def test_frames_of_one_person_share_betas_and_agree_better(hand):
    pose, betas, translation, _ = made(hand, 5, seed=2)
    vertices = hand.body.vertices(pose, np.repeat(betas[:1], 5, 0)) + translation[:, None]
    vertices = vertices + np.random.default_rng(1).normal(scale=0.004, size=vertices.shape)
    shared, single = hand.fit(vertices, share_betas=True), hand.fit(vertices)
    assert (shared.betas == shared.betas[0]).all() and np.ptp(single.betas, axis=0).min() > 0
    assert np.abs(shared.betas - betas[0]).mean() < np.abs(single.betas - betas[0]).mean()
    assert shared.error_mm.max() < 8


def test_the_shape_weight_holds_betas_back(hand):
    _, _, _, vertices = made(hand, 2)
    sizes, errors = [], []
    for weight in (0.0, 1.0, 1e4):
        found = hand.fit(vertices, weight)
        sizes.append(np.abs(found.betas).max())
        errors.append(found.error_mm.mean())
    assert sizes[0] > sizes[1] > sizes[2] and sizes[2] < 0.05
    assert errors[0] < errors[1] < errors[2]


def test_a_mesh_that_no_hand_has_is_fitted_with_its_error(hand):
    vertices = np.random.default_rng(0).normal(scale=0.05, size=(1, 778, 3))
    found = hand.fit(vertices)
    assert all(np.isfinite(getattr(found, name)).all() for name in ("pose", "betas", "translation"))
    assert found.error_mm[0] > 20
    assert hand.fit(np.zeros((1, 778, 3))).error_mm[0] > 10


def test_nobody(hand):
    for found in (hand.fit(np.empty((0, 778, 3))), hand.fit_bodies([]), hand.fit(np.empty((0, 778, 3)), 1, True)):
        assert len(found) == 0
        shapes = [getattr(found, name).shape for name in ("pose", "betas", "translation", "error_mm")]
        assert shapes == [(0, 48), (0, 10), (0, 3), (0,)]


def body_of(vertices: np.ndarray, translation: tuple[float, float, float]) -> Body:
    zeros = np.zeros((21, 3), np.float32)
    return Body(
        zeros, vertices.astype(np.float32), zeros[0], np.float32(translation), np.zeros(4, np.float32), 500.0,
        (0.0, 0.0), "freihand21", np.zeros((0, 3), np.int32),
    )  # fmt: skip


def test_an_estimators_bodies_come_in_the_camera_frame(hand, tmp_path):
    _, _, _, vertices = made(hand, 2, seed=5)
    vertices = vertices - vertices.mean(1, keepdims=True)
    bodies = [body_of(vertices[0], (0.1, 0.2, 3)), body_of(vertices[1], (-0.5, 0.0, 7))]
    found = hand.fit_bodies(bodies, 0)
    expected = np.stack([body.vertices + body.translation for body in bodies])
    assert distance_mm(rebuilt(hand, found), expected).max() < 0.02
    found.save(tmp_path / "hands.npz")
    with np.load(tmp_path / "hands.npz", allow_pickle=False) as file:
        for name in ("pose", "betas", "translation", "error_mm"):
            np.testing.assert_array_equal(file[name], getattr(found, name))
        assert (str(file["model"]), str(file["model_sha256"])) == ("mano", hand.body.file.sha256)
    values = found.to_dict(1)
    assert sorted(values) == ["betas", "error_mm", "pose", "translation_m"]
    np.testing.assert_allclose(values["pose"], found.pose[1], atol=1e-6)


@pytest.mark.parametrize(
    "vertices, message",
    [
        (np.zeros((1, 6890, 3)), r"MANO parameters are fitted to vertices \(N, 778, 3\), got \(1, 6890, 3\)"),
        (np.zeros((778, 3)), r"got \(778, 3\)"),
        (np.full((2, 778, 3), np.nan), "body 0 have NaN"),
        ([["a"]], "must be an array"),
        (np.random.default_rng(0).normal(scale=90, size=(1, 778, 3)), "look like millimetres"),
    ],
)
def test_vertices_that_cannot_be_fitted(hand, vertices, message):
    with pytest.raises(UserError, match=message):
        hand.fit(vertices)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_are_none(hand, weight):
    with pytest.raises(UserError, match="shape_weight_mm2 must be"):
        hand.fit(np.zeros((1, 778, 3)), weight)


def test_bodies_of_another_mesh(hand):
    with pytest.raises(UserError, match="MANO has 778 vertices, the bodies have 12"):
        hand.fit_bodies([body_of(np.zeros((12, 3)), (0, 0, 1))])


def test_a_model_with_one_beta(hand):
    file = dataclasses.replace(hand.body.file, shapedirs=hand.body.file.shapedirs[:, :, :1])
    with pytest.raises(UserError, match="at least 2 betas, got 1"):
        SmplFitter(SkinnedBody(file))


def bundle_with(
    vertices: int, faces: np.ndarray, name: str, outputs: tuple[str, ...] = OUTPUT_NAMES
) -> SimpleNamespace:
    template = SimpleNamespace(vertices=np.zeros((vertices, 3)), faces=faces)
    return SimpleNamespace(template=template, spec=SimpleNamespace(name="net", body=name, outputs=outputs))


def test_the_fitter_of_a_bundle(hand, shared_bundle, tmp_path):
    faces = hand.body.file.faces
    folder = metro_folder()
    assert SmplFitter.for_bundle(bundle_with(778, faces, "mano"), folder).body.file.kind == "mano"
    with pytest.raises(UserError, match=r"body 'egg' of 162 vertices.*run without"):
        SmplFitter.for_bundle(shared_bundle, folder)
    with pytest.raises(
        UserError, match=r"'net' gives joints alone \(camera, joints, mesh_joints\): .*fitted to meshes"
    ):
        SmplFitter.for_bundle(bundle_with(778, faces, "mano", ("camera", "joints", "mesh_joints")), folder)
    with pytest.raises(UserError, match="is MANO, the bundle's body 'smpl' is SMPL"):
        SmplFitter.for_bundle(bundle_with(6890, faces, "smpl"), find_smpl(folder, kind="mano"))
    with pytest.raises(UserError, match="other triangles"):
        SmplFitter.for_bundle(bundle_with(778, faces[:-1], "mano"), folder)
    with pytest.raises(UserError, match="no right-hand MANO model"):
        SmplFitter.for_bundle(bundle_with(778, faces, "mano"), tmp_path)


def test_derivatives_are_those_of_the_positions(hand):
    skinning = Skinning(hand.body.file, np.arange(778))
    rng = np.random.default_rng(0)
    rotations = np.stack([cv2.Rodrigues(v)[0] for v in rng.normal(scale=0.6, size=(16, 3))])
    pose, betas = Pose(rotations, rng.normal(size=3)), rng.normal(size=10)
    vertices, columns = skinning.linearised(pose, betas)
    np.testing.assert_allclose(vertices, skinning.vertices(pose, betas), atol=1e-12)
    step = 1e-6 * rng.normal(size=columns.shape[1])
    moved = skinning.vertices(skinning.stepped(pose, step[:48].reshape(-1, 3), step[48:51]), betas + step[51:])
    expected = columns @ step
    np.testing.assert_allclose((moved - vertices).ravel(), expected, atol=1e-4 * np.abs(expected).max())
