"""NPZ, pandas, GLB and BVH: what is written is read back by other means and compared with the motion."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
import trimesh

from metro_edge.errors import UserError
from metro_edge.joints import FREIHAND21, H36M14, H36M17, J24, JOINT_SETS, JointSet
from metro_edge.video.bvh import BvhFiles, Skeleton, euler_zxy_deg, local_rotations
from metro_edge.video.glb import GlbFile, drawing_level
from metro_edge.video.npz import NpzFile, arrays_of, table_of
from metro_edge.video.spool import Spool


def written(sink, clip) -> None:
    for result in clip:
        sink.write(result)
    sink.close()


def test_npz_holds_what_arrays_of_gives(tmp_path, clip, template):
    count = len(template.vertices)
    written(NpzFile(tmp_path / "a.npz", H36M14, template.faces, count), clip)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        values = {name: file[name] for name in file.files}
    arrays = arrays_of(clip, vertices=True)
    assert values.keys() - arrays.keys() == {"joint_names", "faces", "complete"}
    for name, array in arrays.items():
        np.testing.assert_array_equal(values[name], array, err_msg=name)
        assert values[name].dtype == array.dtype
    assert values["joints_m"].shape == (50, 14, 3) and values["vertices_m"].shape == (50, count, 3)
    assert list(values["joint_names"]) == list(H36M14.names) and values["complete"]
    np.testing.assert_array_equal(values["identity"][:7], [1] * 5 + [1, 2])
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"]


def test_nobody_is_empty_arrays(tmp_path, result_of, template):
    empty = [result_of(0, {})]
    assert {name: len(array) for name, array in arrays_of(empty, vertices=True).items()}["vertices_m"] == 0
    written(NpzFile(tmp_path / "a.npz", H36M14, None), empty)
    with np.load(tmp_path / "a.npz") as file:
        assert file["joints_m"].shape == (0, 14, 3)


def test_pandas_table(clip):
    table = table_of(clip)
    assert len(table) == 50 * 14
    row = table[(table.frame == 7) & (table.identity == 2) & (table.joint == "neck")].iloc[0]
    body = clip[7].bodies[1]
    np.testing.assert_allclose([row.x_m, row.y_m, row.z_m], body.joints[12] + body.translation, atol=1e-6)
    np.testing.assert_allclose([row.x_px, row.y_px], body.joints_px[12], atol=1e-4)
    assert table_of([]).empty


def read_glb(path):
    data = path.read_bytes()
    magic, version, total = struct.unpack_from("<III", data)
    assert (magic, version, total) == (0x46546C67, 2, len(data))
    length = struct.unpack_from("<I", data, 12)[0]
    document = json.loads(data[20 : 20 + length])
    binary = data[20 + length + 8 :]
    kinds = {5126: "<f4", 5125: "<u4"}

    def accessor(number):
        a = document["accessors"][number]
        view = document["bufferViews"][a["bufferView"]]
        columns = {"VEC3": 3, "SCALAR": 1}[a["type"]]
        flat = np.frombuffer(binary, kinds[a["componentType"]], a["count"] * columns, view["byteOffset"])
        return flat.reshape(-1, columns) if columns > 1 else flat

    return document, accessor


def played(path, time_s):
    """Shown meshes (name, vertices) at a time, by the glTF specification's rules of interpolation."""
    document, accessor = read_glb(path)
    animation = document["animations"][0]
    state = {n: {"scale": node.get("scale", [1, 1, 1]), "weights": None} for n, node in enumerate(document["nodes"])}
    for channel in animation["channels"]:
        sampler = animation["samplers"][channel["sampler"]]
        keys, values = accessor(sampler["input"]), accessor(sampler["output"])
        values = values.reshape(len(keys), -1)
        at = int(np.clip(np.searchsorted(keys, time_s, side="right") - 1, 0, len(keys) - 1))
        value = values[at]
        if sampler["interpolation"] == "LINEAR" and keys[0] <= time_s < keys[-1]:
            share = (time_s - keys[at]) / (keys[at + 1] - keys[at])
            value = (1 - share) * values[at] + share * values[at + 1]
        state[channel["target"]["node"]][channel["target"]["path"]] = value
    ground = np.array(document["nodes"][0]["matrix"]).reshape(4, 4).T
    shown = []
    for number in document["nodes"][0]["children"]:
        node = document["nodes"][number]
        if not np.any(state[number]["scale"]):
            continue
        (primitive,) = document["meshes"][node["mesh"]]["primitives"]
        points = accessor(primitive["attributes"]["POSITION"]).astype(float)
        targets = primitive.get("targets", [])
        weights = state[number]["weights"] if targets else []
        for target, weight in zip(targets, weights, strict=True):
            points = points + weight * accessor(target["POSITION"])
        shown.append((node["name"], points @ ground[:3, :3].T + ground[:3, 3]))
    return sorted(shown, key=lambda one: one[0])


def test_the_animated_glb_plays_the_motion(tmp_path, clip, template):
    written(GlbFile(tmp_path / "a.glb", template), clip)
    level, _ = drawing_level(template)
    for frame in (0, 3, 10, 23, 24, 25, 28):
        shown = played(tmp_path / "a.glb", frame / 25 + 1e-4)
        assert [name for name, _ in shown] == [f"person{identity}" for identity in clip[frame].identities], frame
        for (_, points), body in zip(shown, clip[frame].bodies, strict=True):
            wanted = (body.vertices[level] + body.translation) * (1, -1, -1)
            np.testing.assert_allclose(points, wanted, atol=2e-3)
    half = dict(played(tmp_path / "a.glb", 2.5 / 25))["person1"]
    before, after = (dict(played(tmp_path / "a.glb", k / 25))["person1"] for k in (2, 3))
    between = (before + after) / 2
    np.testing.assert_allclose(half, between, atol=1e-5)
    scene = trimesh.load(tmp_path / "a.glb")  # another reader finds meshes of the right size, and shows the first frame
    assert scene.extents.min() > 0.05
    assert len(next(iter(scene.geometry.values())).faces) == len(template.faces)


def test_the_drawing_level_is_the_finest_that_is_small(template):
    vertices, faces = drawing_level(template)
    assert len(vertices) == len(template.vertices) and faces is template.faces  # the coarse level has no faces
    assert faces.max() < len(vertices)


def test_glb_needs_people_with_meshes(tmp_path, result_of, template):
    sink = GlbFile(tmp_path / "a.glb", template)
    sink.write(result_of(0, {}))
    sink.close()
    assert sink.paths == [] and sink.notes == [f"nobody was seen: no {tmp_path / 'a.glb'} was written"]
    sink = GlbFile(tmp_path / "a.glb", template)
    with pytest.raises(UserError, match="joints alone"):
        sink.write(result_of(0, {1: ((0, 0, 4), 0)}, mesh=False))
    sink.discard()
    assert list(tmp_path.iterdir()) == []


def read_bvh(path):
    """Names, parents, offsets and frames' values of a BVH file, by its grammar."""
    tokens = iter(path.read_text().split())
    names, parents, offsets, channels, stack = [], [], [], [], [-1]
    pending = None
    for token in tokens:
        if token in ("ROOT", "JOINT"):
            pending = next(tokens)
        elif token == "End":
            assert next(tokens) == "Site"
            pending = None
        elif token == "{":
            if pending is not None:
                names.append(pending)
                parents.append(stack[-1])
                stack.append(len(names) - 1)
            else:
                stack.append(stack[-1])
        elif token == "}":
            stack.pop()
        elif token == "OFFSET":
            value = [float(next(tokens)) for _ in range(3)]
            if pending is not None:
                offsets.append(value)
        elif token == "CHANNELS":
            channels.append([next(tokens) for _ in range(int(next(tokens)))])
        elif token == "MOTION":
            break
    assert next(tokens) == "Frames:"
    count = int(next(tokens))
    assert (next(tokens), next(tokens)) == ("Frame", "Time:")
    step = float(next(tokens))
    values = np.array([float(token) for token in tokens]).reshape(count, -1)
    return names, parents, np.array(offsets), channels, step, values


def turn_about(axis: str, degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return {
        "X": np.array([[1, 0, 0], [0, c, -s], [0, s, c]]),
        "Y": np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]]),
        "Z": np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }[axis]


def posed(path) -> tuple[list[str], np.ndarray, float]:
    """Joint positions (F, K, 3) in centimetres of a BVH file, by forward kinematics."""
    names, parents, offsets, channels, step, values = read_bvh(path)
    frames = []
    for row in values:
        at, world, places = 0, [], []
        for joint, kinds in enumerate(channels):
            shift, turn = offsets[joint].copy(), np.eye(3)
            for kind in kinds:
                value = row[at]
                at += 1
                if kind.endswith("position"):
                    shift["XYZ".index(kind[0])] += value
                else:
                    turn = turn @ turn_about(kind[0], value)
            if parents[joint] < 0:
                world.append(turn)
                places.append(shift)
            else:
                world.append(world[parents[joint]] @ turn)
                places.append(places[parents[joint]] + world[parents[joint]] @ shift)
        frames.append(places)
    return names, np.array(frames), step


def test_bvh_plays_the_joints(tmp_path, clip):
    written(BvhFiles(tmp_path / "a.bvh", H36M14, 25.0), clip)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.person1.bvh", "a.person2.bvh"]
    names, places, step = posed(tmp_path / "a.person1.bvh")
    assert step == pytest.approx(0.04, abs=1e-6) and names[0] == "root" and sorted(names[1:]) == sorted(H36M14.names)
    assert len(places) == 30
    rows = [H36M14.index(name) for name in names[1:]]
    for frame, result in enumerate(clip):
        body = result.bodies[0]
        wanted = (body.joints + body.translation)[rows] * (1, -1, -1) * 100
        # The made body is rigid, so that bones keep their lengths and the skeleton fits it exactly.
        np.testing.assert_allclose(places[frame, 1:], wanted, atol=0.05)
    _, second, _ = posed(tmp_path / "a.person2.bvh")
    assert len(second) == 25  # from frame 5 to frame 29, holding the pose while they were away
    np.testing.assert_allclose(second[12], second[9], atol=1e-6)


@pytest.mark.parametrize("name", JOINT_SETS)
def test_every_joint_set_spans_a_skeleton(name):
    joints = JOINT_SETS[name]
    skeleton = Skeleton.of(joints)
    assert set(skeleton.rows) - {-1} == set(range(len(joints)))
    assert all(parent < node for node, parent in enumerate(skeleton.parents))
    single = len(joints.root_indices) == 1
    assert (skeleton.rows[0] >= 0) == single == (joints in (H36M17, FREIHAND21, J24))


def test_what_no_bone_reaches_hangs_on_the_head_or_the_root():
    pieces = JointSet("pieces", ("a", "b", "c"), (("a", "b"),), ("a",), "made up")
    assert Skeleton.of(pieces) == Skeleton(("a", "b", "c"), (-1, 0, 0), (0, 1, 2))
    skeleton = Skeleton.of(J24)
    nose = skeleton.names.index("nose")
    assert skeleton.names[skeleton.parents[nose]] == "jaw"


def test_rotations_of_any_pose():
    """Whatever the pose, single bones point where they should, and angles give their rotation back."""
    rng = np.random.default_rng(1)
    skeleton = Skeleton.of(H36M14)
    offsets = rng.standard_normal((len(skeleton.rows), 3))
    offsets[0] = 0
    for _ in range(20):
        points = rng.standard_normal((len(skeleton.rows), 3))
        local = local_rotations(skeleton, offsets, points)
        world = []
        for node, parent in enumerate(skeleton.parents):
            world.append(local[node] if parent < 0 else world[parent] @ local[node])
            np.testing.assert_allclose(np.linalg.det(local[node]), 1)
            kids = skeleton.children(node)
            if len(kids) == 1:
                a, b = world[node] @ offsets[kids[0]], points[kids[0]] - points[node]
                assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) == pytest.approx(1)
            z, x, y = euler_zxy_deg(local[node])
            again = turn_about("Z", z) @ turn_about("X", x) @ turn_about("Y", y)
            np.testing.assert_allclose(again, local[node], atol=1e-9)
    flat = turn_about("Z", 30) @ turn_about("X", 90) @ turn_about("Y", 0)
    z, x, y = euler_zxy_deg(flat)
    np.testing.assert_allclose(turn_about("Z", z) @ turn_about("X", x) @ turn_about("Y", y), flat, atol=1e-6)


def test_a_bone_that_turns_round(tmp_path):
    skeleton = Skeleton(("a", "b"), (-1, 0), (0, 1))
    local = local_rotations(skeleton, np.array([[0, 0, 0], [0, 1.0, 0]]), np.array([[0, 0, 0], [0, -2.0, 0]]))
    np.testing.assert_allclose(local[0] @ [0, 1, 0], [0, -1, 0], atol=1e-9)
    assert np.linalg.det(local[0]) == pytest.approx(1)


def test_spool(tmp_path):
    spool = Spool(tmp_path, (2, 3))
    rows = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    for row in rows:
        spool.append(row)
    np.testing.assert_array_equal(spool.row(2), rows[2])
    assert b"".join(spool.blocks()) == rows.tobytes() and spool.rows == 4
    with pytest.raises(UserError, match=r"a row of shape \(2, 3\) was expected"):
        spool.append(np.zeros(3))
    spool.close()
    with pytest.raises(UserError, match="cannot write into folder"):
        Spool(tmp_path / "none", (1,))
