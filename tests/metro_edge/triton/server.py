"""A stand-in for Triton: runs the models of a repository as their configurations say.

It takes the place of the server alone: ONNX Runtime runs the exported graph, Python the exported model.py.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from google.protobuf import json_format

from tests.metro_edge.triton.schema import alike, enum_name, mapped, parsed

DTYPES = {"TYPE_UINT8": np.uint8, "TYPE_FP16": np.float16, "TYPE_FP32": np.float32, "TYPE_FP64": np.float64}


class Tensor:
    def __init__(self, name: str, array: np.ndarray) -> None:
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        view = self._array.view()
        view.flags.writeable = False  # it is the server's memory
        return view


class TritonError(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.text = message


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self.output_tensors, self.error = output_tensors, error


class InferenceRequest:
    def __init__(self, inputs: list[Tensor]) -> None:
        self._inputs = inputs

    def inputs(self) -> list[Tensor]:
        return self._inputs


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in request.inputs() if tensor.name() == name), None)


def backend_module() -> types.ModuleType:
    """Make `triton_python_backend_utils`, as far as it is used."""
    module = types.ModuleType("triton_python_backend_utils")
    for item in (Tensor, TritonError, InferenceResponse, InferenceRequest, get_input_tensor_by_name):
        setattr(module, item.__name__, item)
    return module


class Server:
    """Loads all of a repository's models."""

    def __init__(self, repository: Path) -> None:
        sys.modules["triton_python_backend_utils"] = backend_module()
        self.configs = {p.name: parsed((p / "config.pbtxt").read_text()) for p in repository.iterdir()}
        self.loaded: dict[str, Any] = {}
        for name, config in self.configs.items():
            assert config.name == name and (repository / name / "1").is_dir()
            if config.backend == "python":
                self.loaded[name] = self._python(repository / name, config)
            elif config.platform == "onnxruntime_onnx":
                graph = repository / name / "1" / config.default_model_filename
                self.loaded[name] = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])

    @staticmethod
    def _python(folder: Path, config: Any) -> Any:
        spec = importlib.util.spec_from_file_location(f"model_of_{folder.name}", folder / "1" / "model.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        values = json_format.MessageToJson(config, preserving_proto_field_name=True)
        model = module.TritonPythonModel()
        described = json.loads(values)  # in Triton's own JSON a map is an object
        described["parameters"] = {p["key"]: p["value"] for p in described.get("parameters", [])}
        model.initialize({"model_config": json.dumps(described), "model_repository": str(folder), "model_version": "1"})
        return model

    def infer(self, name: str, requests: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray] | str]:
        """Run requests; returns for each its outputs, or its error's text."""
        config = self.configs[name]
        for request in requests:
            self._check(config, config.input, request, optional=True)
        if config.platform == "ensemble":
            results: list[Any] = [self._ensemble(config, request) for request in requests]
        elif config.backend == "python":
            made = [InferenceRequest([Tensor(k, v) for k, v in request.items()]) for request in requests]
            responses = self.loaded[name].execute(made)
            assert len(responses) == len(requests)
            results = [
                r.error.text if r.error else {t.name(): t.as_numpy() for t in r.output_tensors} for r in responses
            ]
        else:
            results = [self._network(name, config, request) for request in requests]
        for result in results:
            if not isinstance(result, str):
                self._check(config, config.output, result, optional=False)
        return results

    def _network(self, name: str, config: Any, request: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert 1 <= len(request["images"]) <= config.max_batch_size
        names = [output.name for output in config.output]
        return dict(zip(names, self.loaded[name].run(names, request), strict=True))

    def _ensemble(self, config: Any, request: dict[str, np.ndarray]) -> dict[str, np.ndarray] | str:
        tensors = dict(request)
        for step in config.ensemble_scheduling.step:
            given = {name: tensors[tensor] for name, tensor in mapped(step.input_map).items()}
            (result,) = self.infer(step.model_name, [given])
            if isinstance(result, str):
                return result
            tensors |= {tensor: result[name] for name, tensor in mapped(step.output_map).items()}
        return {output.name: tensors[output.name] for output in config.output}

    @staticmethod
    def _check(config: Any, described: Any, tensors: dict[str, np.ndarray], *, optional: bool) -> None:
        assert tensors.keys() <= {d.name for d in described}
        for d in described:
            if d.name not in tensors:
                assert optional and d.optional, d.name
                continue
            dims = [-1, *d.dims] if config.max_batch_size > 0 else list(d.dims)
            assert tensors[d.name].dtype == DTYPES[enum_name(d, "data_type")], d.name
            assert alike(list(tensors[d.name].shape), dims), (config.name, d.name, tensors[d.name].shape, dims)
