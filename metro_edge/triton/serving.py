"""What Triton's Python backend runs: frame and boxes to the network's input, the network's outputs to bodies.

The repository's model.py names these classes `TritonPythonModel`; Triton's Python needs `pip install metro-edge`. So
the crops and the bodies are those of MeshEstimator, not a second version of them.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metro_edge.backends import Outputs
from metro_edge.errors import UserError
from metro_edge.postprocess import Intrinsics, bodies_from_outputs
from metro_edge.preprocess import Frame, check_boxes, check_frame, frame_from_bytes, network_input
from metro_edge.spec import INPUT_NAME, ModelSpec
from metro_edge.template import BodyTemplate

BACKEND = "triton_python_backend_utils"  # Triton gives it to the models that it runs; it is not on PyPI
SPEC_FILE, BODY_FILE = "spec.json", "body.npz"
_DTYPES = {"TYPE_FP32": np.float32, "TYPE_FP16": np.float16}

Arrays = dict[str, NDArray[Any]]


class _Model:
    """What both models share: files beside model.py, and one answer for each request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read spec and configuration; Triton calls it once, with text for text."""
        self._triton: Any = importlib.import_module(BACKEND)
        self._folder = Path(args["model_repository"]) / args["model_version"]
        self._config: dict[str, Any] = json.loads(args["model_config"])
        self.spec = ModelSpec.from_json((self._folder / SPEC_FILE).read_text(encoding="utf-8"))

    def _answers(self, requests: Sequence[Any], answer: Callable[[Callable[[str], Any]], Arrays]) -> list[Any]:
        """Return one response for each request; a mistake in one is its own error and leaves the others alone."""
        responses = []
        for request in requests:

            def tensor(name: str, request: Any = request) -> Any:
                found = self._triton.get_input_tensor_by_name(request, name)
                return None if found is None else found.as_numpy()

            try:
                outputs = [self._triton.Tensor(name, array) for name, array in answer(tensor).items()]
                responses.append(self._triton.InferenceResponse(output_tensors=outputs))
            except UserError as error:
                failure = self._triton.TritonError(str(error))
                responses.append(self._triton.InferenceResponse(output_tensors=[], error=failure))
        return responses


class PreprocessModel(_Model):
    """`frame` (H, W, 3) uint8 BGR or `picture`, the bytes of a file, and `boxes` (N, 4) px -> `images`."""

    def initialize(self, args: dict[str, str]) -> None:
        """See _Model; the parameters `max_people` and `focal_px` are the configuration's."""
        super().initialize(args)
        parameters = {key: value["string_value"] for key, value in self._config.get("parameters", {}).items()}
        self._max_people = int(parameters["max_people"])
        self._focal_px = float(parameters["focal_px"]) if "focal_px" in parameters else None
        types = {tensor["name"]: tensor["data_type"] for tensor in self._config["output"]}
        self._dtype = _DTYPES[types[INPUT_NAME]]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return for each request `images` (N, 3, S, S), `boxes_px` (N, 4) and `intrinsics` (3,): focal, centre, px."""
        return self._answers(requests, self._answer)

    def _answer(self, tensor: Callable[[str], Any]) -> Arrays:
        frame = self._frame(tensor("frame"), tensor("picture"))
        boxes = check_boxes(tensor("boxes"), frame.shape[:2])
        if not 1 <= len(boxes) <= self._max_people:
            raise UserError(f"boxes must be those of 1 to {self._max_people} people, got {len(boxes)}")
        camera = Intrinsics.for_frame(frame.shape[:2], self._focal_px)
        return {
            INPUT_NAME: network_input(frame, boxes, self.spec).astype(self._dtype, copy=False),
            "boxes_px": boxes,
            "intrinsics": np.array([camera.focal_px, *camera.centre_px]),
        }

    @staticmethod
    def _frame(frame: Any, picture: Any) -> Frame:
        if (frame is None) == (picture is None):
            raise UserError("one of `frame` and `picture` must be given")
        return check_frame(frame) if picture is None else frame_from_bytes(np.asarray(picture).tobytes(), "the picture")


class PostprocessModel(_Model):
    """Outputs of the network, `boxes_px` and `intrinsics` -> camera, joints, vertices, translation, joints_px."""

    def initialize(self, args: dict[str, str]) -> None:
        """See _Model."""
        super().initialize(args)
        self._template = BodyTemplate.load(self._folder / BODY_FILE)
        self._outputs = [tensor["name"] for tensor in self._config["output"]]
        self._given = [tensor["name"] for tensor in self._config["input"] if tensor["name"] in Outputs._fields]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return for each request the attributes of its bodies (metro_edge.body.Body), stacked."""
        return self._answers(requests, self._answer)

    def _answer(self, tensor: Callable[[str], Any]) -> Arrays:
        outputs = Outputs(**{name: np.asarray(tensor(name), np.float32) for name in self._given})
        focal_px, x, y = (float(value) for value in tensor("intrinsics"))
        camera = Intrinsics(focal_px, (x, y))
        bodies = bodies_from_outputs(outputs, tensor("boxes_px"), camera, self.spec, self._template)
        return {name: np.stack([getattr(body, name) for body in bodies]) for name in self._outputs}
