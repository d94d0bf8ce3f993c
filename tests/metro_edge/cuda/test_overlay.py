"""Drawing on the GPU against whole-number coverage in NumPy, the OpenCV overlay and strokes by their definition."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from metro_edge.body import Body
from metro_edge.cuda.arrays import YUV_RULES, DeviceBuffer, DeviceFrame, yuv_of_bgr
from metro_edge.cuda.loading import KernelLoader
from metro_edge.cuda.overlay import MeshOverlay, SkeletonOverlay
from metro_edge.errors import UserError
from metro_edge.joints import joint_set
from metro_edge.postprocess import Intrinsics
from metro_edge.raster import project, vertex_normals
from metro_edge.template import BodyTemplate
from metro_edge.video import overlay as reference
from tests.test_layout import ROOT
from tests.virtual_gpu.device import on_stand_in

H36M = joint_set("h36m14")
WIDTH, HEIGHT = 157, 119  # odd, and no multiple of a block
VIEW = Intrinsics(190.0, (70.3, 61.8))


@pytest.fixture(scope="module")
def template() -> BodyTemplate:
    return BodyTemplate.load(ROOT / "metro_edge/assets/bundle/body.npz")


def ball(rings: int = 7, around: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """A sphere of radius 0.4 m with outward faces, (V, 3) float32 and (F, 3)."""
    angles = np.linspace(0, np.pi, rings + 2)[1:-1]
    turns = np.linspace(0, 2 * np.pi, around, endpoint=False)
    points = [(0, -1, 0)]
    points += [(np.sin(a) * np.cos(t), -np.cos(a), np.sin(a) * np.sin(t)) for a in angles for t in turns]
    points.append((0, 1, 0))
    faces = []
    for ring in range(rings - 1):
        for i in range(around):
            a, b = 1 + ring * around + i, 1 + ring * around + (i + 1) % around
            faces += [(a, b, a + around), (b, b + around, a + around)]
    last = len(points) - 1
    for i in range(around):
        faces += [(0, 1 + (i + 1) % around, 1 + i), (last, last - around + i, last - around + (i + 1) % around)]
    return 0.4 * np.array(points, np.float32), np.array(faces)[:, ::-1].copy()


def background(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([(x * 3 + y) % 256, (y * 5 + 31) % 256, (x * 2 + y * 7) % 256], axis=-1).astype(np.uint8)


def as_body(vertices, translation, faces, joints=None, intrinsics=VIEW) -> Body:
    joints = np.zeros((14, 3), np.float32) if joints is None else joints
    translation = np.array(translation, np.float32)
    zeros = np.zeros(3, np.float32)
    centre = intrinsics.centre_px
    return Body(
        joints, vertices, zeros, translation, np.zeros(4, np.float32), intrinsics.focal_px, centre, "h36m14", faces
    )


class Picture:
    """Planes in device memory with a gap behind every row, whose bytes must stay."""

    def __init__(self, planes: list[np.ndarray], format: str, yuv: str = "bt601", gap: int = 9):
        self.gap, self.shapes = gap, [plane.shape for plane in planes]
        flat = [plane.reshape(len(plane), -1) for plane in planes]
        self.rows = [DeviceBuffer.of(np.hstack([p, np.full((len(p), gap), 77, np.uint8)])) for p in flat]
        second = (self.rows[1].pointer, self.rows[1].shape[1]) if len(planes) > 1 else ()
        height, width = planes[0].shape[:2]
        self.frame = DeviceFrame(
            self.rows[0].pointer, width, height, format, self.rows[0].shape[1], *second, yuv=yuv
        )  # fmt: skip

    def get(self) -> list[np.ndarray]:
        planes = []
        for rows, shape in zip(self.rows, self.shapes, strict=True):
            values = rows.get()
            assert (values[:, values.shape[1] - self.gap :] == 77).all()
            planes.append(values[:, : values.shape[1] - self.gap].reshape(shape))
        return planes


def draw(device, picture: Picture, vertices, translations, faces, intrinsics=VIEW, **options) -> MeshOverlay:
    opacity = options.pop("opacity", 0.85)
    vertices = np.asarray(vertices, np.float32)
    size = options.pop("size_wh", (picture.frame.width, picture.frame.height))
    overlay = MeshOverlay(faces, vertices.shape[1], size, device.loader, max(len(vertices), 1), **options)
    places = DeviceBuffer.of(np.asarray(translations, np.float32).reshape(-1, 3))
    overlay(picture.frame, DeviceBuffer.of(vertices), places, intrinsics, opacity)
    device.wait()
    return overlay


EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
# In view, behind another, beyond each border, far away, around the camera, all behind it.
PLACES = [
    (0, 0, 2), (0.2, 0.1, 2.3), (-1, 0.3, 2.2), (1.2, -0.7, 2.4), (0, 1.3, 2.5), (0.4, -0.2, 30), (0.47, 0.1, 0.38),
    (0, 0, -3), (50, 0, 2),
]  # fmt: skip


def nearest_of(corners, inverse_depths, faces, width, height) -> np.ndarray:
    """The buffer of depths, by the definition in kernels/overlay.cu, triangle by triangle over the whole picture."""
    py, px = (axis.astype(np.int64) * 256 for axis in np.mgrid[:height, :width])
    nearest = np.full((height, width), EMPTY)
    for person in range(len(corners)):
        for number, face in enumerate(faces):
            (ax, ay), (bx, by), (cx, cy) = corners[person][face].astype(np.int64)
            a, b, c = inverse_depths[person][face]
            area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
            if area == 0 or 0 in (a, b, c):
                continue
            if area < 0:
                bx, by, cx, cy, b, c, area = cx, cy, bx, by, c, b, -area
            sa = (cx - bx) * (py - by) - (cy - by) * (px - bx)
            sb = (ax - cx) * (py - cy) - (ay - cy) * (px - cx)
            sc = area - sa - sb
            inside = (sa | sb | sc) >= 0
            depth = (sa.astype("f4") * a + sb.astype("f4") * b + sc.astype("f4") * c) / np.float32(area)
            key = (~depth.view(np.uint32)).astype(np.uint64) << np.uint64(32)
            key |= np.uint64(person * len(faces) + number)
            nearest = np.where(inside, np.minimum(nearest, key), nearest)
    return nearest


@pytest.mark.gpu
@pytest.mark.parametrize("supersample", [1, 2])
def test_every_sample_belongs_to_the_triangle_that_whole_numbers_say(device, supersample):
    vertices, faces = ball(4, 7)
    meshes = np.repeat(vertices[None], len(PLACES), axis=0)
    overlay = draw(device, Picture([background()], "bgr"), meshes, PLACES, faces, supersample=supersample)
    corners, inverse = overlay._corners.get(), overlay._inverse_depths.get()
    width, height = WIDTH * supersample, HEIGHT * supersample
    got = overlay._nearest.get().reshape(height, width)
    expected = nearest_of(corners, inverse, faces, width, height)
    assert 0.3 < (expected != EMPTY).mean() < 0.95
    np.testing.assert_array_equal(got, expected)
    # The corners are where the projection is, to 1/256 of a sample and the roundings of float32.
    for person, place in enumerate(PLACES):
        placed = vertices.astype(np.float64) + place
        ahead = placed[:, 2] >= 0.011
        np.testing.assert_array_equal(inverse[person] > 0, ahead)
        near = ahead & (placed[:, 2] > 0.1)
        samples = (project(placed[near], VIEW.focal_px, VIEW.centre_px) + 0.5) * supersample - 0.5
        assert np.abs(corners[person][near] / 256 - samples).max(initial=0) < 0.5 / 256 + 2e-3


@pytest.mark.gpu
def test_samples_that_lie_on_edges_and_corners_are_covered(device):
    quad = np.array([[(20, 30, 0), (60, 30, 0), (60, 50, 0), (20, 50, 0)]], np.float32)
    picture = Picture([np.zeros((HEIGHT, WIDTH, 3), np.uint8)], "bgr")
    faces = np.array([(0, 2, 1), (0, 3, 2)])
    draw(device, picture, quad, [(0, 0, 1)], faces, Intrinsics(1.0, (0.0, 0.0)), supersample=1)
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[30:51, 20:61] = True
    np.testing.assert_array_equal(picture.get()[0].any(axis=-1), expected)


@pytest.mark.gpu
def test_light_is_that_of_the_opencv_overlay(device, template):
    vertices = template.vertices[None].repeat(7, axis=0)
    places = [(0, 0, 3 + i) for i in range(7)]
    overlay = draw(device, Picture([background()], "bgr"), vertices, places, template.faces)
    # The normals are 3e-6 apart where triangles are tiny, and a 24th power makes 24 of one, times 0.1.
    for person in range(7):
        base = reference.PALETTE[person % len(reference.PALETTE)]
        expected = reference.shade(vertices[person], template.faces, base)
        np.testing.assert_allclose(overlay._colours.get()[person], expected, rtol=0, atol=2e-5)


def compare_with_opencv(got: np.ndarray, bodies: list[Body], frame: np.ndarray, edges: float, **options) -> None:
    """All pixels within two levels but those of edges, where OpenCV's rasteriser decides samples otherwise."""
    expected = reference.draw_bodies(frame, bodies, **options)
    drawn = (expected != frame).any(axis=-1)
    apart = np.abs(got.astype(int) - expected).max(axis=-1)
    assert (apart > 2).sum() <= edges * drawn.sum()
    assert np.abs(got.astype(int) - expected).mean() < 0.3
    assert (got == frame)[~cv2.dilate(drawn.astype(np.uint8), np.ones((5, 5))).astype(bool)].all()


@pytest.mark.gpu
@pytest.mark.parametrize("supersample", [1, 2])
@pytest.mark.parametrize("opacity", [0.85, 1.0])
def test_bodies_look_like_those_of_the_opencv_overlay(device, template, supersample, opacity):
    places = [(0.1, 0.05, 2.6), (-0.25, 0.1, 3.2), (0.9, 0.3, 2.8)]
    meshes = template.vertices[None].repeat(3, axis=0)
    picture = Picture([background()], "bgr")
    draw(device, picture, meshes, places, template.faces, supersample=supersample, opacity=opacity)
    bodies = [as_body(m, p, template.faces) for m, p in zip(meshes, places, strict=True)]
    compare_with_opencv(
        picture.get()[0], bodies, background(), edges=0.003, opacity=opacity, supersample=supersample
    )  # fmt: skip


@pytest.mark.gpu
def test_large_triangles_and_rgb(device):
    vertices, faces = ball()
    picture = Picture([background()[..., ::-1]], "rgb")
    draw(device, picture, vertices[None], [(0.02, -0.03, 0.9)], faces)
    body = as_body(vertices, (0.02, -0.03, 0.9), faces.astype(np.int32))
    compare_with_opencv(picture.get()[0][..., ::-1], [body], background(), edges=0.003)


def nv12_over(planes, layer, alpha, yuv):
    """Blend (H, W, 3) BGR `layer`, times `alpha` (H, W), into NV12 planes, rounding once."""
    zero, matrix = yuv_of_bgr(yuv)
    values = layer @ matrix.T + alpha[..., None] * zero
    height, width = alpha.shape
    luma = planes[0] * (1 - alpha) + values[..., 0]
    squares = np.concatenate([values[..., 1:], alpha[..., None]], axis=-1)
    squares = squares.reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
    chroma = planes[1] * (1 - squares[..., 2:]) + squares[..., :2]
    return luma, chroma


@pytest.mark.gpu
@pytest.mark.parametrize("yuv", YUV_RULES)
def test_nv12_gets_the_same_picture_in_its_own_colours(device, yuv):
    """The layer is read back from a black and a white BGR picture; luma within a level, as that was rounded twice."""
    vertices, faces = ball()
    places = [(0, 0, 1.2), (0.3, 0.2, 1.6)]
    height, width = 118, 158
    pictures = []
    for value in (0, 255):
        picture = Picture([np.full((height, width, 3), value, np.uint8)], "bgr")
        draw(device, picture, [vertices] * 2, places, faces)
        pictures.append(picture.get()[0].astype(np.float64))
    layer, alpha = pictures[0], 1 - (pictures[1] - pictures[0]).mean(axis=-1) / 255
    r = np.random.default_rng(0)
    planes = [
        r.integers(16, 236, (height, width), dtype=np.uint8),
        r.integers(16, 241, (height // 2, width // 2, 2), dtype=np.uint8),
    ]
    picture = Picture(planes, "nv12", yuv)
    draw(device, picture, [vertices] * 2, places, faces)
    for got, expected, plane in zip(picture.get(), nv12_over(planes, layer, alpha, yuv), planes, strict=True):
        assert np.abs(got - expected).max() < 2.1
        assert np.abs(got - expected).mean() < 0.4
        assert (got != plane).mean() > 0.1
    untouched = alpha == 0
    np.testing.assert_array_equal(picture.get()[0][untouched], planes[0][untouched])


@pytest.mark.parametrize("yuv", YUV_RULES)
def test_the_two_directions_of_a_colour_rule_are_inverse(yuv):
    black, luma, red_v, green_u, green_v, blue_u = YUV_RULES[yuv]
    zero, matrix = yuv_of_bgr(yuv)
    back = np.array([(luma, blue_u, 0), (luma, green_u, green_v), (luma, 0, red_v)]) / 2**20
    np.testing.assert_allclose(back @ matrix, np.eye(3), atol=2e-3)  # OpenCV's bt601 has three digits
    assert zero.tolist() == [black, 128, 128]


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 64])
def test_any_number_of_meshes_without_an_allocation(device, count):
    vertices, faces = ball(3, 5)
    r = np.random.default_rng(count)
    places = np.column_stack([r.uniform(-1, 1, (count, 2)), r.uniform(2, 6, count)])
    meshes = np.repeat(vertices[None], count, axis=0)
    picture = Picture([background()], "bgr")
    overlay = draw(device, picture, meshes, places, faces, size_wh=(200, 130))
    if count:
        bodies = [as_body(vertices, place, faces.astype(np.int32)) for place in places]
        compare_with_opencv(picture.get()[0], bodies, background(), edges=0.003)
    else:
        np.testing.assert_array_equal(picture.get()[0], background())
    if on_stand_in():
        buffers = DeviceBuffer.of(meshes), DeviceBuffer.of(places.astype(np.float32))
        names = ("cuMemAlloc", "cuMemHostAlloc", "bytes to device", "bytes to host", "bytes within device")
        before = [device.count(name) for name in names]
        overlay(picture.frame, *buffers, VIEW)
        assert [device.count(name) for name in names] == before


def joints_px(count: int, seed: int = 0) -> np.ndarray:
    r = np.random.default_rng(seed)
    middle, size = r.uniform((-20, -20), (170, 130), (count, 1, 2)), r.uniform(10, 300, (count, 1, 1))
    return (middle + r.uniform(-0.5, 0.5, (count, 14, 2)) * size).astype(np.float32)


def strokes_over(points: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """The layer of all skeletons, (H, W, 3) times opacity, and the opacity (H, W), by the definition."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    layer, alpha = np.zeros((height, width, 3)), np.zeros((height, width))
    names = H36M.names
    for person in points.astype(np.float64):
        thickness = max(1.0, np.rint(np.ptp(person, axis=0).max() / 120))
        lines = [(a, b, thickness / 2, (names[a], names[b])) for a, b in H36M.bone_indices]
        lines += [(i, i, thickness + 1, (name, name)) for i, name in enumerate(names)]
        for a, b, radius, sides in lines:
            along = person[b] - person[a]
            length2 = (along**2).sum()
            offset = np.stack([x, y], axis=-1) - person[a]
            share = np.clip(offset @ along / length2, 0, 1) if length2 else np.zeros_like(x)
            distance = np.linalg.norm(offset - share[..., None] * along, axis=-1)
            cover = np.clip(radius + 0.5 - distance, 0, 1)
            layer = layer * (1 - cover[..., None]) + cover[..., None] * reference.side_bgr(*sides)
            alpha = alpha * (1 - cover) + cover
    return layer, alpha


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("count", "height", "width"), [(0, 40, 30), (1, HEIGHT, WIDTH), (5, HEIGHT, WIDTH), (64, 37, 51)]
)
def test_skeletons_are_strokes_by_their_definition(device, count, height, width):
    frame = background(height, width)
    points, picture = joints_px(count), Picture([frame], "bgr")
    SkeletonOverlay(H36M, device.loader)(picture.frame, DeviceBuffer.of(points))
    layer, alpha = strokes_over(points, height, width)
    got = picture.get()[0]
    assert np.abs(got - (frame * (1 - alpha[..., None]) + layer)).max() < 0.5 + 0.02
    np.testing.assert_array_equal(got[alpha == 0], frame[alpha == 0])


@pytest.mark.gpu
def test_skeletons_cover_what_those_of_opencv_cover(device):
    """OpenCV's antialiasing is another: the pixels that are painted for more than half are the same but for edges."""
    points = joints_px(1, seed=5)[:, :, :] * 0.7 + 15
    joints = np.zeros((14, 3), np.float32)
    joints[:, :2] = (points[0] - VIEW.centre_px) / VIEW.focal_px
    body = as_body(np.zeros((0, 3), np.float32), (0, 0, 1), np.zeros((0, 3), np.int32), joints)
    grey = np.full((HEIGHT, WIDTH, 3), 0, np.uint8)
    expected = reference.draw_skeletons(grey, [body]).max(axis=-1) > 100
    picture = Picture([grey], "bgr")
    SkeletonOverlay(H36M, device.loader)(picture.frame, DeviceBuffer.of(body.joints_px[None]))
    got = picture.get()[0].max(axis=-1) > 100
    assert (got & expected).sum() / (got | expected).sum() > 0.8
    outside = ~cv2.dilate(expected.astype(np.uint8), np.ones((3, 3))).astype(bool)
    assert not (got & outside).any()


@pytest.mark.gpu
def test_skeletons_in_nv12(device):
    height, width = 118, 158
    planes = [np.full((height, width), 90, np.uint8), np.full((height // 2, width // 2, 2), 120, np.uint8)]
    picture, points = Picture(planes, "nv12", "bt709"), joints_px(4, seed=2)
    SkeletonOverlay(H36M, device.loader)(picture.frame, DeviceBuffer.of(points))
    expected = nv12_over(planes, *strokes_over(points, height, width), "bt709")
    for got, wanted in zip(picture.get(), expected, strict=True):
        assert np.abs(got - np.clip(wanted, 0, 255)).max() < 0.5 + 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_joints_that_are_not_finite_draw_nothing(device, value):
    points, picture = joints_px(2), Picture([background()], "bgr")
    points[0] = value
    SkeletonOverlay(H36M, device.loader)(picture.frame, DeviceBuffer.of(points))
    layer, alpha = strokes_over(points[1:], HEIGHT, WIDTH)
    expected = background() * (1 - alpha[..., None]) + layer
    assert np.abs(picture.get()[0] - expected).max() < 0.5 + 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_joint_that_is_not_finite_leaves_the_others(device, value):
    points, picture = joints_px(1), Picture([background()], "bgr")
    whole = Picture([background()], "bgr")
    SkeletonOverlay(H36M, device.loader)(whole.frame, DeviceBuffer.of(points))
    points[0, 3, 0] = value
    SkeletonOverlay(H36M, device.loader)(picture.frame, DeviceBuffer.of(points))
    changed, drawn = (np.abs(one.get()[0].astype(int) - background()).max(axis=2) > 2 for one in (picture, whole))
    assert 0 < changed.mean() < 0.3 and not (changed & ~drawn).any()


@pytest.mark.gpu
def test_calls_that_cannot_be(device):
    vertices, faces = ball(3, 5)
    overlay = MeshOverlay(faces, len(vertices), (WIDTH, HEIGHT), device.loader, max_people=2)
    picture = Picture([background()], "bgr")
    frame, two, places = picture.frame, DeviceBuffer((2, 17, 3), np.float32), DeviceBuffer((2, 3), np.float32)
    yuyv, large = DeviceFrame(frame.pointer, 64, 64, "yuyv"), DeviceFrame(frame.pointer, 158, HEIGHT)
    three = DeviceBuffer((3, 17, 3), np.float32), DeviceBuffer((3, 3), np.float32)
    for arguments, text in (
        ((yuyv, two, places), "nothing can be drawn into yuyv"),
        ((large, two, places), "larger than the overlay"),
        ((frame, *three), "3 people, but this overlay was made for 2"),
        ((frame, two, two), r"translations must be \(2, 3\)"),
        ((frame, places, places), r"vertices must be \(2, 17, 3\)"),
    ):
        with pytest.raises(UserError, match=text):
            overlay(*arguments, VIEW)
    with pytest.raises(UserError, match="opacity must be 0 to 1"):
        overlay(frame, two, places, VIEW, opacity=1.2)
    skeletons = SkeletonOverlay(H36M, device.loader, max_people=1)
    for points, text in (
        (DeviceBuffer((2, 14, 2), np.float32), "2 people, but this overlay was made for 1"),
        (two, r"joints_px must be \(2, 14, 2\)"),
    ):
        with pytest.raises(UserError, match=text):
            skeletons(frame, points)
    with pytest.raises(UserError, match="nothing can be drawn into yuyv"):
        skeletons(yuyv, DeviceBuffer((1, 14, 2), np.float32))
    np.testing.assert_array_equal(picture.get()[0], background())


@pytest.mark.parametrize(("options", "text"), [
    ({"supersample": 0}, "supersample must be 1 to 4"), ({"supersample": 5}, "supersample must be 1 to 4"),
    ({"max_people": 0}, "max_people must be"), ({"size_wh": (0, 5)}, "cannot be drawn"),
    ({"size_wh": (32_766, 32_766)}, "cannot be drawn"),
])  # fmt: skip
def test_overlays_that_cannot_be(options, text):
    vertices, faces = ball(3, 5)
    with pytest.raises(UserError, match=text):
        MeshOverlay(faces, len(vertices), **{"size_wh": (10, 10), "loader": KernelLoader(), **options})


def test_the_ball_faces_outwards():
    vertices, faces = ball()
    outwards = (vertex_normals(vertices, faces) * vertices).sum(axis=1)
    assert (outwards > 0.3).all()
