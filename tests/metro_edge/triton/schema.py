"""Triton's published configuration schema, as protobuf messages, and what its server checks beyond it.

tests/data/triton_model_config.json holds names, numbers and types of protobuf/model_config.proto, all of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

RECORDED = Path(__file__).parents[2] / "data" / "triton_model_config.json"
Field = descriptor_pb2.FieldDescriptorProto


@lru_cache(maxsize=1)
def model_config_class() -> type[Any]:
    """Make the class of the message inference.ModelConfig."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8"))
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="inference", syntax="proto3")
    made: dict[str, Any] = {}
    for name in recorded["messages"]:  # outer ones come first
        outer, _, inner = name.rpartition(".")
        # Maps are recorded as what they are in the text form: repeated pairs.
        made[name] = made[outer].nested_type.add(name=inner) if outer else file.message_type.add(name=name)
    for name, values in recorded["enums"].items():
        outer, _, inner = name.rpartition(".")
        enum = made[outer].enum_type.add(name=inner) if outer else file.enum_type.add(name=name)
        for value, number in values.items():
            enum.value.add(name=value, number=number)
    for name, fields in recorded["messages"].items():
        for field, (number, kind, *repeated) in fields.items():
            label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            added = made[name].field.add(name=field, number=number, label=label)
            if kind in recorded["messages"] or kind in recorded["enums"]:
                added.type = Field.TYPE_MESSAGE if kind in recorded["messages"] else Field.TYPE_ENUM
                added.type_name = f".inference.{kind}"
            else:
                added.type = Field.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


def parsed(text: str) -> Any:
    """Parse a config.pbtxt; raises text_format.ParseError for what the schema does not have."""
    return text_format.Parse(text, model_config_class()())


def enum_name(message: Any, field: str) -> str:
    """Return the name of an enumeration's value."""
    return message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name


def mapped(pairs: Any) -> dict[str, Any]:
    return {pair.key: pair.value for pair in pairs}


def check_ensemble(ensemble: Any, models: Mapping[str, Any]) -> None:
    """Assert what Triton's server checks of an ensemble when it loads one (core, ensemble_utils.cc).

    Every input of a step is mapped, unless optional; names exist; types are equal; dimensions agree, -1 with anything,
    as they are or with the batch of a model that has one in front; every tensor is made before it is used.
    """
    known: dict[str, tuple[int, list[int], list[int]]] = {}

    def agree(tensor: str, model: Any, described: Any) -> None:
        dims = list(described.dims)
        full = [-1, *dims] if model.max_batch_size > 0 else dims
        if tensor in known:
            kind, other_dims, other_full = known[tensor]
            assert kind == described.data_type, tensor
            assert alike(dims, other_dims) or alike(full, other_full), (tensor, full, other_full)
        known.setdefault(tensor, (described.data_type, dims, full))

    ready = set()
    for described in ensemble.input:
        agree(described.name, ensemble, described)
        ready.add(described.name)
    for described in ensemble.output:
        agree(described.name, ensemble, described)
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        assert ensemble.max_batch_size <= model.max_batch_size or model.max_batch_size == 0
        inputs, outputs = mapped(step.input_map), mapped(step.output_map)
        assert inputs.keys() <= {i.name for i in model.input} and outputs.keys() <= {o.name for o in model.output}
        assert {i.name for i in model.input if not i.optional} <= inputs.keys(), step.model_name
        assert set(inputs.values()) <= ready, step.model_name
        for described in (*model.input, *model.output):
            for mapping in (inputs, outputs):
                if described.name in mapping and described in (model.input if mapping is inputs else model.output):
                    agree(mapping[described.name], model, described)
        ready |= set(outputs.values())
    assert {o.name for o in ensemble.output} <= ready


def alike(first: list[int], second: list[int]) -> bool:
    return len(first) == len(second) and all(-1 in (a, b) or a == b for a, b in zip(first, second, strict=True))
