"""Detectors are networks built in the form that their exporters give, whose outputs depend on the picture they get."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from metro_edge.errors import PredictionError, UserError
from metro_edge.video.detector import KINDS, OnnxDetector

S = 96  # px of the input
CELLS = (S // 8) ** 2 + (S // 16) ** 2 + (S // 32) ** 2
# In a frame of 200 x 100: scale 0.48, the picture is 96 x 48, in the corner or 24 px down in the middle.
TRUTH = np.array([[50.0, 25.0, 50.0, 50.0], [125.0, 25.0, 25.0, 50.0]])


def corners(shift_y: float) -> np.ndarray:
    c = np.concatenate([TRUTH[:, :2], TRUTH[:, :2] + TRUTH[:, 2:]], axis=1) * 0.48
    c[:, [1, 3]] += shift_y
    return c


def centres(shift_y: float) -> np.ndarray:
    c = corners(shift_y)
    return np.concatenate([(c[:, :2] + c[:, 2:]) / 2, c[:, 2:] - c[:, :2]], axis=1)


def network(
    path: Path, outputs: dict[str, np.ndarray], *, sizes: bool = False, image_shape=(1, 3, S, S), gate=None, dynamic=()
) -> Path:
    """Outputs that are constants times a gate: 1 where the input looks as it should, else 0.

    `gate` is the value that the middle of channel 0 must have; it tells the channels' order and range.
    """
    value = 0.8 if gate is None else gate
    consts = {
        "zero": np.array([0], np.int64),
        "want": np.array(value, np.float32),
    }
    consts["slack"] = np.array(0.02 * max(abs(value), 0.5), np.float32)
    axis = len(image_shape) - 3
    nodes = [
        helper.make_node("Gather", ["images", "zero"], ["channel"], axis=axis),
        helper.make_node("ReduceMax", ["channel"], ["brightest"], keepdims=0),
        helper.make_node("Sub", ["brightest", "want"], ["off"]),
        helper.make_node("Abs", ["off"], ["distance"]),
        helper.make_node("Less", ["distance", "slack"], ["right"]),
        helper.make_node("Cast", ["right"], ["gate"], to=TensorProto.FLOAT),
    ]  # fmt: skip
    infos = []
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, image_shape)]
    if sizes:
        inputs.append(helper.make_tensor_value_info("orig_target_sizes", TensorProto.INT64, [1, 2]))
    for name, array in outputs.items():
        consts[f"{name}_value"] = array
        if array.dtype == np.int64:
            nodes.append(helper.make_node("Identity", [f"{name}_value"], [name]))
        elif sizes and name == "boxes":  # shares of the size that is given: (w, h, w, h)
            nodes += [
                helper.make_node("Cast", ["orig_target_sizes"], ["wh"], to=TensorProto.FLOAT),
                helper.make_node("Concat", ["wh", "wh"], ["whwh"], axis=1),
                helper.make_node("Mul", [f"{name}_value", "whwh"], [name]),
            ]
        else:
            nodes.append(helper.make_node("Mul", [f"{name}_value", "gate"], [name]))
        kind = TensorProto.INT64 if array.dtype == np.int64 else TensorProto.FLOAT
        shape = ["n" if (name, k) in dynamic else size for k, size in enumerate(array.shape)]
        infos.append(helper.make_tensor_value_info(name, kind, shape))
    graph = helper.make_graph(
        nodes, "detector", inputs, infos, [numpy_helper.from_array(np.asarray(a), n) for n, a in consts.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def rows(boxes: np.ndarray, classes: int, objectness: bool) -> np.ndarray:
    """(CELLS, ...) rows with two people, a doubled box, another class that is surer, and one that is not sure."""
    table = np.zeros((CELLS, 4 + objectness + classes), np.float32)
    table[:, :4] = 1.0
    for k, box in enumerate(boxes):
        table[k, :4] = box
    table[2, :4] = boxes[0] + (0.5, 0, 0, 0)
    table[3, :4], table[4, :4] = boxes[1] + (8, 0, 0, 0), boxes[1] - (9, 0, 0, 0)
    first = 4 + objectness
    if objectness:
        table[:5, 4] = 1.0
    table[:5, first] = (0.9, 0.8, 0.7, 0.5, 0.2)
    if classes > 1:
        table[3, first + 1] = 0.9
    return table


def yolox_raw(boxes: np.ndarray) -> np.ndarray:
    """Undecoded: places in cells of stride 8 and logarithms of sizes."""
    table = rows(boxes, 80, True)
    cells = np.array([(k % (S // 8), k // (S // 8)) for k in range(5)])
    table[:5, :2] = table[:5, :2] / 8 - cells
    table[:5, 2:4] = np.log(table[:5, 2:4] / 8)
    table[5:, :4] = 0
    return table


def save(kind: str, path: Path) -> Path:
    # The frame below is (10, 20, 204) BGR: red 204 = 0.8.
    labelled = {
        "labels": np.array([[0, 0, 5, 0]], np.int64),
        "scores": np.array([[0.9, 0.8, 0.9, 0.1]], np.float32),
    }
    four = np.concatenate([corners(0), corners(0)])
    stretched = np.concatenate([TRUTH[:, :2], TRUTH[:, :2] + TRUTH[:, 2:]], axis=1) / (200, 100, 200, 100)
    if kind == "yolox":
        return network(path, {"output": yolox_raw(centres(0))[None]}, gate=114.0)  # blue at most the padding's grey
    if kind == "yolox-decoded":
        return network(path, {"output": rows(centres(0), 80, True)[None]}, gate=114.0)
    if kind in ("yolo", "yolo-one"):
        return network(path, {"output0": rows(centres(24), 80 if kind == "yolo" else 1, False).T[None].copy()})
    if kind == "yolo-nms":
        table = np.zeros((1, 30, 6), np.float32)
        table[0, :2, :4], table[0, :2, 4] = corners(24), (0.9, 0.8)
        table[0, 2] = (1, 1, 9, 9, 0.9, 7)
        return network(path, {"output0": table}, dynamic={("output0", 1)})
    if kind == "rtdetr":
        boxes = np.concatenate([stretched, stretched])[None].astype(np.float32)
        return network(path, {"labels": labelled["labels"], "boxes": boxes, "scores": labelled["scores"]}, sizes=True)
    if kind == "detr":
        logits = np.full((1, 5, 80), -9.0, np.float32)
        logits[0, 0, 0], logits[0, 1, 0], logits[0, 2, 3] = np.log(0.9 / 0.1), np.log(0.8 / 0.2), 5
        shares = np.full((1, 5, 4), 0.1, np.float32)
        shares[0, :2] = np.concatenate(
            [(stretched[:, :2] + stretched[:, 2:]) / 2, stretched[:, 2:] - stretched[:, :2]], axis=1
        )
        return network(path, {"logits": logits, "pred_boxes": shares})
    assert kind == "torchvision"
    return network(
        path,
        {
            "boxes": four.astype(np.float32),
            "labels": np.array([1, 1, 3, 1], np.int64),
            "scores": labelled["scores"][0],
        },
        image_shape=(3, S, S),
        dynamic={("boxes", 0), ("labels", 0), ("scores", 0)},
    )


@pytest.fixture
def picture() -> np.ndarray:
    frame = np.zeros((100, 200, 3), np.uint8)
    frame[:] = (10, 20, 204)
    return frame


@pytest.mark.parametrize("kind", [*KINDS, "yolox-decoded", "yolo-one"])
def test_each_kind_is_told_by_its_outputs_and_gives_its_boxes(tmp_path, picture, kind):
    detector = OnnxDetector(save(kind, tmp_path / "a.onnx"), threads=1)
    assert detector.kind == kind.removesuffix("-decoded").removesuffix("-one") and detector.size_wh == (S, S)
    found = detector(picture)
    if kind == "yolo-one":  # without another class the third box is a person too
        assert len(found.boxes) == 3
        found = type(found)(found.boxes[:2], found.scores[:2])
    np.testing.assert_allclose(found.boxes, TRUTH, atol=0.6)
    np.testing.assert_allclose(found.scores, [0.9, 0.8], atol=0.02)


def test_the_threshold_and_other_classes(tmp_path, picture):
    path = save("yolo", tmp_path / "a.onnx")
    assert len(OnnxDetector(path, threshold=0.85)(picture).boxes) == 1
    (other,) = OnnxDetector(path, person_class=1)(picture).boxes
    np.testing.assert_allclose(other, TRUTH[1] + (8 / 0.48, 0, 0, 0), atol=0.6)
    grey = np.full_like(picture, 90)  # the gate of the made network is shut: nobody
    assert len(OnnxDetector(path)(grey).boxes) == 0


@pytest.mark.parametrize(
    "outputs",
    [
        {"output": np.zeros((1, 7), np.float32)},
        {"output": np.zeros((1, CELLS, 5), np.float32)},
        {"output": np.zeros((1, 3, 9, 9, 85), np.float32)},
        {"a": np.zeros((1, 4, 4), np.float32), "b": np.zeros((1, 4, 4), np.float32)},
    ],
)
def test_unknown_outputs(tmp_path, outputs):
    path = network(tmp_path / "a.onnx", outputs)
    with pytest.raises(UserError, match=r"is a network of unknown outputs: .*Known are those of yolox, yolo"):
        OnnxDetector(path)


def test_bad_files(tmp_path, picture):
    with pytest.raises(UserError, match="no detector at"):
        OnnxDetector(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="cannot read detector"):
        OnnxDetector(tmp_path)
    (tmp_path / "a.onnx").write_bytes(b"no network")
    with pytest.raises(UserError):
        OnnxDetector(tmp_path / "a.onnx")
    with pytest.raises(UserError, match="threshold and nms_overlap"):
        OnnxDetector(save("yolo", tmp_path / "b.onnx"), threshold=2)
    text = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])], "flat",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 5])],
    )  # fmt: skip
    onnx.save(helper.make_model(text, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "c.onnx")
    with pytest.raises(UserError, match="takes no picture"):
        OnnxDetector(tmp_path / "c.onnx")


def test_a_network_that_fails_while_it_runs(tmp_path, picture):
    model = onnx.load(save("yolo", tmp_path / "a.onnx"))
    bad = next(t for t in model.graph.initializer if t.name == "zero")
    bad.CopyFrom(numpy_helper.from_array(np.array([50], np.int64), "zero"))  # a channel that is not there
    onnx.save(model, tmp_path / "b.onnx")
    with pytest.raises(PredictionError, match="the detector .*b.onnx failed"):
        OnnxDetector(tmp_path / "b.onnx")(picture)
