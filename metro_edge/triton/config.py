"""config.pbtxt of each model of the repository, in protobuf's text format.

Fields and enumerations are those of protobuf/model_config.proto of triton-inference-server/common. Tensors of a model
that takes batches have no batch dimension in its configuration; people are the batch. The Python models and the
ensembles take one frame with all of its people, so theirs is written out, as -1, which Triton matches with that batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec

MARK = "# Written by metro-edge export-triton; exporting again replaces it.\n"
KINDS = ("auto", "gpu", "cpu")
DEFAULT_PEOPLE = 16
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_USED = ("camera", "joints", "vertices", "mesh_joints")  # outputs of the network that bodies are made of

Shape = Sequence[int]


class Word(str):
    """A value that is written without quotes: a name of an enumeration."""


MOST = 2**31 - 1  # of the schema's 32-bit numbers


@dataclass(frozen=True)
class TritonOptions:
    """How the models are served.

    Attributes:
        name: of the network; the others are called NAME_preprocess, NAME_postprocess, NAME_frame and NAME_picture.
        max_people: largest batch of the network, and so the most people of one frame.
        instances: copies of each model that run at the same time, on each GPU.
        kind: where the network runs: `gpu`, `cpu`, or `auto`, which takes a GPU where there is one.
        gpus: numbers of the GPUs; none: all of them.
        delay_us: how long a request may wait for others to be batched with.
        focal_px: focal length of the frames' camera; None assumes the frame's diagonal.
    """

    name: str
    max_people: int = DEFAULT_PEOPLE
    instances: int = 1
    kind: str = "auto"
    gpus: tuple[int, ...] = ()
    delay_us: int = 500
    focal_px: float | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(f"a model's name must be letters, digits, `_`, `-` and `.`, got {self.name!r}")
        if self.kind not in KINDS:
            raise UserError(f"unknown kind {self.kind!r}; known: {', '.join(KINDS)}")
        if self.max_people < 1 or self.instances < 1 or self.delay_us < 0:
            raise UserError(
                f"max_people {self.max_people} and instances {self.instances} must be at least 1, and "
                f"delay_us {self.delay_us} not negative"
            )
        largest = max(self.max_people, self.instances, self.delay_us, *self.gpus)
        if largest > MOST:
            raise UserError(f"Triton counts people, instances, GPUs and microseconds up to {MOST}, got {largest}")
        if any(gpu < 0 for gpu in self.gpus) or (self.gpus and self.kind == "cpu"):
            raise UserError(f"gpus {', '.join(map(str, self.gpus))} must be from 0 on, and are not for kind cpu")
        if self.focal_px is not None and not 0 < self.focal_px < float("inf"):
            raise UserError(f"the focal length must be a positive number of pixels, got {self.focal_px}")

    @property
    def names(self) -> dict[str, str]:
        """Role -> name of the model: network, preprocess, postprocess, frame, picture."""
        others = ("preprocess", "postprocess", "frame", "picture")
        return {"network": self.name, **{role: f"{self.name}_{role}" for role in others}}


@dataclass(frozen=True)
class Tensor:
    """Of the network: `TYPE_FP32` or `TYPE_FP16`, and the dimensions behind the batch."""

    name: str
    data_type: str
    dims: tuple[int, ...]


def network_config(
    options: TritonOptions, inputs: Sequence[Tensor], outputs: Sequence[Tensor], plan_profile: int | None
) -> str:
    """Return the configuration of the network.

    Args:
        options: how it is served.
        inputs, outputs: of the graph.
        plan_profile: number of the plan's profile that is used; None: it is an ONNX graph.
    """
    group: dict[str, Any] = {"count": options.instances}
    kind = "gpu" if plan_profile is not None else options.kind
    group["kind"] = Word(f"KIND_{kind.upper()}")
    if options.gpus:
        group["gpus"] = list(options.gpus)
    if plan_profile:
        group["profile"] = [str(plan_profile)]
    plan = plan_profile is not None
    return text_of(
        {
            "name": options.name,
            "platform": "tensorrt_plan" if plan else "onnxruntime_onnx",
            "backend": "tensorrt" if plan else "onnxruntime",
            "default_model_filename": "model.plan" if plan else "model.onnx",
            "max_batch_size": options.max_people,
            "input": [_tensor(t.name, t.data_type, t.dims) for t in inputs],
            "output": [_tensor(t.name, t.data_type, t.dims) for t in outputs],
            "instance_group": [group],
            "dynamic_batching": {"max_queue_delay_microseconds": options.delay_us},
        }
    )


def preprocess_config(options: TritonOptions, images: Tensor) -> str:
    """Return the configuration of the Python model that makes the network's `images` of a frame and boxes."""
    parameters = {"max_people": str(options.max_people)}
    if options.focal_px is not None:
        parameters["focal_px"] = repr(float(options.focal_px))
    return _python_config(
        options,
        "preprocess",
        [{**tensor, "optional": True} for tensor in (_FRAME, _PICTURE)] + [_BOXES],
        [_tensor(images.name, images.data_type, (-1, *images.dims)), _BOXES_PX, _INTRINSICS],
        parameters,
    )


def postprocess_config(options: TritonOptions, outputs: Sequence[Tensor], spec: ModelSpec) -> str:
    """Return the configuration of the Python model that makes bodies of the network's outputs."""
    given = [_tensor(t.name, t.data_type, (-1, *t.dims)) for t in used(outputs)]
    return _python_config(options, "postprocess", [*given, _BOXES_PX, _INTRINSICS], body_tensors(spec), {})


def ensemble_config(
    options: TritonOptions, role: str, outputs: Sequence[Tensor], images: Tensor, spec: ModelSpec
) -> str:
    """Return the configuration of an ensemble: `frame` takes a decoded one, `picture` the bytes of a file."""
    names = options.names
    first = _FRAME if role == "frame" else _PICTURE
    between = {name: f"network_{name}" for name in (t.name for t in used(outputs))}
    shared = {"boxes_px": "boxes_px", "intrinsics": "intrinsics"}
    bodies = body_tensors(spec)
    source = str(first["name"])
    steps = [
        _step(names["preprocess"], {source: source, "boxes": "boxes"}, {images.name: images.name, **shared}),
        _step(names["network"], {images.name: images.name}, between),
        _step(names["postprocess"], {**between, **shared}, {str(t["name"]): str(t["name"]) for t in bodies}),
    ]
    return text_of(
        {
            "name": names[role],
            "platform": "ensemble",
            "max_batch_size": 0,
            "input": [first, _BOXES],
            "output": bodies,
            "ensemble_scheduling": {"step": steps},
        }
    )


def used(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the network's outputs that bodies are made of."""
    return [tensor for tensor in outputs if tensor.name in _USED]


def body_tensors(spec: ModelSpec) -> list[dict[str, Any]]:
    """Return the outputs of the whole: camera, joints, vertices (unless joints alone), translation, joints_px."""
    joints, mesh = len(spec.joints), "vertices" in spec.outputs
    return [
        _tensor("camera", "TYPE_FP32", (-1, 3)),
        _tensor("joints", "TYPE_FP32", (-1, joints, 3)),
        *([_tensor("vertices", "TYPE_FP32", (-1, spec.vertex_count, 3))] if mesh else []),
        _tensor("translation", "TYPE_FP32", (-1, 3)),
        _tensor("joints_px", "TYPE_FP32", (-1, joints, 2)),
    ]


def _python_config(
    options: TritonOptions,
    role: str,
    inputs: Sequence[Mapping[str, Any]],
    outputs: Sequence[Mapping[str, Any]],
    parameters: Mapping[str, str],
) -> str:
    return text_of(
        {
            "name": options.names[role],
            "backend": "python",
            "max_batch_size": 0,
            "input": list(inputs),
            "output": list(outputs),
            "instance_group": [{"count": options.instances, "kind": Word("KIND_CPU")}],
            "parameters": [{"key": key, "value": {"string_value": value}} for key, value in parameters.items()],
        }
    )


def _tensor(name: str, data_type: str, dims: Shape) -> dict[str, Any]:
    return {"name": name, "data_type": Word(data_type), "dims": list(dims)}


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, Any]:
    return {
        "model_name": model,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in inputs.items()],
        "output_map": [{"key": key, "value": value} for key, value in outputs.items()],
    }


_FRAME = _tensor("frame", "TYPE_UINT8", (-1, -1, 3))
_PICTURE = _tensor("picture", "TYPE_UINT8", (-1,))
_BOXES = _tensor("boxes", "TYPE_FP32", (-1, 4))
_BOXES_PX = _tensor("boxes_px", "TYPE_FP64", (-1, 4))
_INTRINSICS = _tensor("intrinsics", "TYPE_FP64", (3,))


def text_of(values: Mapping[str, Any]) -> str:
    """Return a message in protobuf's text format: mappings are messages, sequences are repeated."""
    return MARK + "\n".join(_lines(values, "")) + "\n"


def _lines(values: Mapping[str, Any], indent: str) -> list[str]:
    lines = []
    for name, value in values.items():
        for item in value if isinstance(value, list) and value and isinstance(value[0], Mapping) else [value]:
            if isinstance(item, Mapping):
                lines += [f"{indent}{name} {{", *_lines(item, indent + "  "), f"{indent}}}"]
            elif isinstance(item, list):
                lines += [f"{indent}{name}: [{', '.join(map(_scalar, item))}]"] if item else []
            else:
                lines.append(f"{indent}{name}: {_scalar(item)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, Word):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
