"""What a plan is made of: `PLAN.layers.json`.

`layers` are those of the network as it was given to the builder, before it fuses any; always there. `engine` is what
the library's engine inspector says of the plan itself, in its own words; where no GPU is there it is null, and
`engine_missing` says why.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from metro_edge.backends.gpu import Gpu
from metro_edge.plans.log import logger_of
from metro_edge.plans.versions import Library

if TYPE_CHECKING:
    import tensorrt as stubs

_PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16"}


def layers_path(plan_path: Path) -> Path:
    """Return the path of a plan's layers: `model.plan` has `model.plan.layers.json`."""
    return plan_path.with_name(plan_path.name + ".layers.json")


def network_layers(network: stubs.INetworkDefinition) -> list[dict[str, Any]]:
    """Return name, type, precision, inputs and outputs (name, precision, shape) of every layer; -1 is the batch."""
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [layer.get_input(number) for number in range(layer.num_inputs)]
        outputs = [layer.get_output(number) for number in range(layer.num_outputs)]
        layers.append(
            {
                "name": layer.name,
                "type": layer.type.name.lower(),
                "precision": precision_name(outputs[0].dtype) if outputs else None,  # such as the end of a loop
                "inputs": [_tensor(tensor) for tensor in inputs if tensor is not None],
                "outputs": [_tensor(tensor) for tensor in outputs],
            }
        )
    return layers


def precision_name(dtype: stubs.DataType) -> str:
    """Return `fp32` for DataType.FLOAT and so on."""
    name = str(dtype.name)
    return _PRECISIONS.get(name, name.lower())


def shape_of(tensor: stubs.ITensor) -> tuple[int, ...]:
    """Return the shape of a tensor; -1 is a dynamic size."""
    return tuple(cast(Any, tensor.shape))  # the stubs do not know that Dims can be walked


def _tensor(tensor: stubs.ITensor) -> dict[str, Any]:
    return {"name": tensor.name, "precision": precision_name(tensor.dtype), "shape": list(shape_of(tensor))}


def layer_information(trt: Library, layers: list[dict[str, Any]], plan: memoryview, gpu: Gpu | None) -> dict[str, Any]:
    """Return the content of PLAN.layers.json; an inspector that fails is a reason in it, not an error."""
    content: dict[str, Any] = {"schema_version": 1, "layers": layers, "engine": None, "engine_missing": None}
    if gpu is None:
        content["engine_missing"] = "a plan is inspected on a GPU, and there is no NVIDIA driver here"
        return content
    log = logger_of(trt)
    log.start()
    engine: Any = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        content["engine_missing"] = f"the plan does not load here: {log.reason()}"
        return content
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        content["engine"] = json.loads(text)
    except (ValueError, RecursionError) as error:
        content["engine_missing"] = f"the inspector's answer is not JSON: {error}"
    return content
