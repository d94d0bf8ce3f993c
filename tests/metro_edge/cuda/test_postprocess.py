"""The kernels behind the network against metro_edge.postprocess, template and raster."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from metro_edge.backends import Outputs
from metro_edge.cuda.arrays import DeviceArray, DeviceBuffer
from metro_edge.cuda.loading import KernelLoader
from metro_edge.cuda.postprocess import Placed, Postprocess, Regressor, VertexNormals, check_status
from metro_edge.errors import PredictionError, UserError
from metro_edge.postprocess import Intrinsics, bodies_from_outputs
from metro_edge.raster import vertex_normals
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from tests.test_layout import ROOT
from tests.virtual_gpu.device import on_stand_in

INTRINSICS = Intrinsics(1468.6, (959.5, 539.5))


@pytest.fixture(scope="module")
def template() -> BodyTemplate:
    return BodyTemplate.load(ROOT / "metro_edge/assets/bundle/body.npz")


@pytest.fixture(scope="module")
def spec(template) -> ModelSpec:
    return ModelSpec("test", 224, "h36m14", template.name, len(template.vertices))


def people(template: BodyTemplate, count: int, seed: int = 0) -> tuple[Outputs, np.ndarray]:
    """Bodies of several sizes, turned, off the origin as a network leaves them; and boxes, some beyond borders."""
    r = np.random.default_rng(seed)
    angles = r.uniform(-np.pi, np.pi, count)
    turns = np.zeros((count, 3, 3))
    turns[:, 0, 0] = turns[:, 2, 2] = np.cos(angles)
    turns[:, 0, 2], turns[:, 2, 0], turns[:, 1, 1] = np.sin(angles), -np.sin(angles), 1.0
    sizes = r.uniform(0.6, 1.3, (count, 1, 1))
    vertices = template.vertices @ turns * sizes + r.uniform(-0.2, 0.2, (count, 1, 3))
    vertices = (vertices + r.normal(0, 0.003, vertices.shape)).astype(np.float32)
    joints = template.joints("h36m14", vertices).astype(np.float32) + r.normal(0, 0.01, (count, 14, 3))
    camera = np.column_stack([r.uniform(0.5, 1.1, count), r.uniform(-0.2, 0.2, (count, 2))])
    boxes = np.column_stack([r.uniform(-300, 1800, (count, 2)), r.uniform(60, 900, (count, 2))])
    return Outputs(camera.astype(np.float32), joints.astype(np.float32), vertices), boxes


def run(device, spec, template, outputs, boxes, in_place=False, stream=None, intrinsics=INTRINSICS) -> Placed:
    """Placed with NumPy arrays."""
    mesh = outputs.vertices if outputs.vertices is not None else outputs.mesh_joints
    camera, joints, mesh = (DeviceBuffer.of(array) for array in (outputs.camera, outputs.joints, mesh))
    placed = Placed.allocate(len(boxes), len(spec.joints), spec.vertex_count if "vertices" in spec.outputs else 0)
    if in_place:
        placed = dataclasses.replace(placed, joints=joints, vertices=mesh)
    postprocess = Postprocess(spec, template, device.loader, max_people=130)
    postprocess(camera, joints, mesh, boxes, intrinsics, placed, stream)
    if stream is not None:
        stream.synchronize()
    return Placed(**{name: array.get() for name, array in placed.__dict__.items()})


def compare(placed: Placed, bodies) -> None:
    """Within float32, whose unit is 6e-8 of a number.

    The root is a sum of 96 products of up to 2 m in eight steps: 1 um at most. Translations are of three roundings.
    Pixels up to 2,600 from the corner are 2.4e-4 px apart in float32, and four roundings lead there.
    """
    for i, body in enumerate(bodies):
        np.testing.assert_allclose(placed.camera[i], body.camera, rtol=0, atol=1e-6)
        np.testing.assert_allclose(placed.translation[i], body.translation, rtol=1e-6, atol=2e-6)
        np.testing.assert_allclose(placed.joints[i], body.joints, rtol=0, atol=1e-6)
        np.testing.assert_allclose(placed.vertices[i], body.vertices, rtol=0, atol=1e-6)
        np.testing.assert_allclose(placed.joints_px[i], body.joints_px, rtol=2e-6, atol=1e-3)
        np.testing.assert_allclose(placed.vertices_px[i], body.vertices_px, rtol=2e-6, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("in_place", [False, True])
def test_bodies_are_those_of_the_numpy_path(device, spec, template, count, in_place):
    outputs, boxes = people(template, count)
    placed = run(device, spec, template, outputs, boxes, in_place)
    check_status(placed.status)
    compare(placed, bodies_from_outputs(outputs, boxes, INTRINSICS, spec, template) if count else [])


@pytest.mark.gpu
@pytest.mark.parametrize("count", [64, 65, 130])
@pytest.mark.parametrize("rule", ["box_area", "metro_eval"])
def test_many_people_without_a_mesh(device, spec, template, count, rule):
    outputs, boxes = people(template, 2)
    spec = dataclasses.replace(spec, outputs=("camera", "joints", "mesh_joints"), crop_rule=rule)
    mesh_joints = template.joints("h36m14", outputs.vertices).astype(np.float32)
    r = np.random.default_rng(count)
    which = r.integers(0, 2, count)
    boxes = np.column_stack([r.uniform(0, 1500, (count, 2)), r.uniform(60, 900, (count, 2))])
    camera = outputs.camera[which] * r.uniform(0.8, 1.2, (count, 1)).astype(np.float32)
    outputs = Outputs(camera, outputs.joints[which], None, mesh_joints[which])
    placed = run(device, spec, template, outputs, boxes)
    check_status(placed.status)
    compare(placed, bodies_from_outputs(outputs, boxes, INTRINSICS, spec, template))


@pytest.mark.gpu
@pytest.mark.parametrize("joint_set", ["h36m14", "coco17"])
def test_regressed_joints(device, template, joint_set):
    outputs, _ = people(template, 5, seed=4)
    rows = len(template.regressors[joint_set].indices)
    joints = DeviceBuffer((5, rows, 3), np.float32)
    Regressor(template, joint_set, device.loader)(DeviceBuffer.of(outputs.vertices), joints)
    exact = template.joints(joint_set, outputs.vertices.astype(np.float64))
    np.testing.assert_allclose(joints.get(), exact, rtol=0, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(("change", "text"), [
    ({"camera": (1, 0, np.nan)}, "person 1 an output that is NaN"),
    ({"camera": (1, 1, np.inf)}, "person 1 an output that is NaN"),
    ({"camera": (1, 0, -0.5)}, "person 1 a camera scale that is not positive"),
    ({"joints": (2, (13, 2), np.nan)}, "person 2 an output that is NaN"),
    ({"vertices": (2, (13_717, 1), -np.inf)}, "person 2 an output that is NaN"),
    ({"vertices": (0, (13_717, 2), -400.0)}, "person 0 a place behind the camera"),
])  # fmt: skip
def test_what_no_body_can_be_made_of_is_found(device, spec, template, change, text):
    outputs, boxes = people(template, 3)
    for name, (person, at, value) in change.items():
        getattr(outputs, name)[person][at] = value
    with pytest.raises(PredictionError, match=text):
        check_status(run(device, spec, template, outputs, boxes).status)
    with pytest.raises(PredictionError):
        bodies_from_outputs(outputs, boxes, INTRINSICS, spec, template)


@pytest.mark.gpu
def test_the_caller_s_stream_and_no_allocation(device, spec, template):
    outputs, boxes = people(template, 2)
    stream = device.driver.Stream()
    plain = run(device, spec, template, outputs, boxes)
    streamed = run(device, spec, template, outputs, boxes, stream=stream)
    for name, values in plain.__dict__.items():
        np.testing.assert_array_equal(getattr(streamed, name), values)
    if not on_stand_in():
        return
    arrays = [DeviceBuffer.of(array) for array in outputs[:3]]
    placed, postprocess = Placed.allocate(2, 14, spec.vertex_count), Postprocess(spec, template, device.loader)
    names = ("cuMemAlloc", "cuMemHostAlloc", "bytes to device", "bytes to host", "bytes within device")
    before = [device.count(name) for name in names]
    postprocess(*arrays, boxes, INTRINSICS, placed, stream)
    assert [device.count(name) for name in names] == before
    stream.synchronize()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 4])
def test_normals(device, template, count):
    """Sums of up to eight float32 cross products: 1e-6, more where the faces around a vertex nearly cancel out."""
    outputs, _ = people(template, count, seed=2)
    meshes = outputs.vertices
    normals = DeviceBuffer(meshes.shape, np.float32)
    VertexNormals(template.faces, meshes.shape[1], device.loader)(DeviceBuffer.of(meshes), normals)
    for got, mesh in zip(normals.get(), meshes, strict=True):
        a, b, c = (mesh[template.faces[:, i]].astype(np.float64) for i in range(3))
        crossed = np.cross(b - a, c - a)
        parts, total = np.zeros(len(mesh)), np.zeros((len(mesh), 3))
        for corner in range(3):
            np.add.at(parts, template.faces[:, corner], np.linalg.norm(crossed, axis=1))
            np.add.at(total, template.faces[:, corner], crossed)
        lengths = np.linalg.norm(total, axis=1)
        # A float32 coordinate of 1 m moves an edge of 5 mm by 6e-8 / 5e-3 of its length.
        bound = 1e-6 + 5e-5 * parts / np.maximum(lengths, 1e-12)
        assert (np.abs(got - vertex_normals(mesh, template.faces)).max(axis=1) <= bound).all()
        unit = total / np.maximum(lengths, 1e-12)[:, None]
        assert (np.abs(got - unit).max(axis=1) <= bound).all()


@pytest.mark.gpu
def test_normals_of_vertices_without_faces_and_of_faces_that_cancel_out_are_zero(device):
    vertices = np.array([[(0, 0, 0), (1, 0, 0), (0, 1, 0), (5, 5, 5)]], np.float32)
    faces = np.array([(0, 1, 2), (0, 2, 1)])
    normals = DeviceBuffer(vertices.shape, np.float32)
    VertexNormals(faces, 4, device.loader)(DeviceBuffer.of(vertices), normals)
    np.testing.assert_array_equal(normals.get(), np.zeros((1, 4, 3)))
    VertexNormals(faces[:1], 4, device.loader)(DeviceBuffer.of(vertices), normals)
    np.testing.assert_array_equal(normals.get()[0], [(0, 0, 1)] * 3 + [(0, 0, 0)])


@pytest.mark.gpu
def test_arrays_that_do_not_fit(device, spec, template):
    outputs, boxes = people(template, 2)
    camera, joints, mesh = (DeviceBuffer.of(array) for array in outputs[:3])
    placed = Placed.allocate(2, 14, spec.vertex_count)
    postprocess = Postprocess(spec, template, device.loader, max_people=2)
    for arrays, target, text in (
        ((camera, joints, joints), placed, r"mesh must be \(2, 13718, 3\) float32, got \(2, 14, 3\)"),
        ((mesh, joints, mesh), placed, r"camera must be \(2, 3\)"),
        ((camera, DeviceBuffer((2, 14, 3), np.float16), mesh), placed, "joints must be .* got .* float16"),
        ((outputs.camera, joints, mesh), placed, "camera must be in device memory"),
        ((camera, joints, mesh), placed.rows(0, 1), r"placed\.camera must be \(2, 3\)"),
        ((camera, joints, mesh), dataclasses.replace(placed, status=camera), r"placed\.status must be \(2,\) int32"),
    ):
        with pytest.raises(UserError, match=text):
            postprocess(*arrays, boxes, INTRINSICS, target)
    with pytest.raises(UserError, match="3 people, but this postprocessing was made for 2"):
        postprocess(camera, joints, mesh, np.ones((3, 4)), INTRINSICS, placed)
    with pytest.raises(UserError, match="5 vertices, the body 13718"):
        Postprocess(dataclasses.replace(spec, vertex_count=5), template, device.loader)
    with pytest.raises(UserError, match="no regressor for joint set 'freihand21'"):
        Regressor(template, "freihand21", device.loader)
    with pytest.raises(UserError, match=r"vertices must be \(2, 13718, 3\)"):
        Regressor(template, "coco17", device.loader)(joints, joints)
    with pytest.raises(UserError, match=r"normals must be \(2, 13718, 3\)"):
        VertexNormals(template.faces, 13_718, device.loader)(mesh, joints)


@pytest.mark.parametrize(
    "faces", [np.zeros((3, 4), int), np.zeros((3, 3)), np.array([[0, 1, 9]]), np.array([[0, 1, -1]])]
)
def test_faces_that_cannot_be(faces):
    with pytest.raises(UserError, match="faces must"):
        VertexNormals(faces, 9, KernelLoader())


def test_status_of_nobody_and_of_all_well():
    check_status(np.zeros(0, np.int32))
    check_status(np.zeros(5, np.int32))
    with pytest.raises(PredictionError, match="person 3 a camera scale"):
        check_status(np.array([0, 0, 0, 2, 1]))


def test_rows_of_an_array_are_further_on():
    rows = DeviceArray(1000, (10, 3, 2), np.dtype(np.float32)).rows(2, 5)
    assert rows == DeviceArray(1000 + 2 * 24, (3, 3, 2), np.dtype(np.float32))


def test_arrays_with_gaps_are_refused():
    class Other:
        def __init__(self, shape, strides):
            self.__cuda_array_interface__ = {"shape": shape, "strides": strides, "typestr": "<f4", "data": (64, False)}

    assert DeviceArray.of(Other((2, 3), (12, 4))).shape == (2, 3)
    assert DeviceArray.of(Other((2, 1, 3), (12, 999, 4))).shape == (2, 1, 3)
    for shape, strides in (((2, 3), (16, 4)), ((2, 3), (4, 8))):
        with pytest.raises(UserError, match="C-contiguous"):
            DeviceArray.of(Other(shape, strides))
