from __future__ import annotations

import dataclasses

import pytest
from google.protobuf import text_format

from metro_edge.errors import UserError
from metro_edge.triton.config import (
    Tensor,
    TritonOptions,
    Word,
    ensemble_config,
    network_config,
    postprocess_config,
    preprocess_config,
    text_of,
)
from tests.metro_edge.triton.schema import check_ensemble, enum_name, parsed

IMAGES = Tensor("images", "TYPE_FP32", (3, 64, 64))


@pytest.fixture
def outputs(spec):
    return [
        Tensor("camera", "TYPE_FP32", (3,)),
        Tensor("joints", "TYPE_FP32", (14, 3)),
        Tensor("vertices", "TYPE_FP32", (spec.vertex_count, 3)),
        Tensor("coarse", "TYPE_FP32", (12, 3)),
    ]


def configs(options, outputs, spec, profile=None):
    texts = [
        network_config(options, [IMAGES], outputs, profile),
        preprocess_config(options, IMAGES),
        postprocess_config(options, outputs, spec),
        *(ensemble_config(options, role, outputs, IMAGES, spec) for role in ("frame", "picture")),
    ]
    return {config.name: config for config in map(parsed, texts)}


def test_all_are_messages_of_the_published_schema(outputs, spec):
    made = configs(TritonOptions("net", max_people=4, instances=2, focal_px=900.5), outputs, spec)
    assert list(made) == ["net", "net_preprocess", "net_postprocess", "net_frame", "net_picture"]
    network = made["net"]
    assert (network.platform, network.backend, network.max_batch_size) == ("onnxruntime_onnx", "onnxruntime", 4)
    assert [list(t.dims) for t in network.output] == [[3], [14, 3], [spec.vertex_count, 3], [12, 3]]
    assert network.dynamic_batching.max_queue_delay_microseconds == 500
    assert network.instance_group[0].count == 2 and enum_name(network.instance_group[0], "kind") == "KIND_AUTO"
    before = made["net_preprocess"]
    assert {i.name: i.optional for i in before.input} == {"frame": True, "picture": True, "boxes": False}
    assert {p.key: p.value.string_value for p in before.parameters} == {"max_people": "4", "focal_px": "900.5"}
    assert [i.name for i in made["net_postprocess"].input] == ["camera", "joints", "vertices", "boxes_px", "intrinsics"]


def test_ensembles_pass_the_servers_checks(outputs, spec):
    joints_only = dataclasses.replace(spec, outputs=("camera", "joints", "mesh_joints"))
    others = [*outputs[:2], Tensor("mesh_joints", "TYPE_FP32", (14, 3))]
    for network, tensors in ((spec, outputs), (joints_only, others)):
        made = configs(TritonOptions("net"), tensors, network)
        for role in ("frame", "picture"):
            check_ensemble(made[f"net_{role}"], made)
            names = [o.name for o in made[f"net_{role}"].output]
            assert ("vertices" in names) is ("vertices" in network.outputs)


def test_the_checks_see_what_does_not_fit(outputs, spec):
    """The test's own checks can fail."""
    for spoil in (
        lambda made: made["net"].input[0].dims.append(7),
        lambda made: made["net_frame"].ensemble_scheduling.step[1].input_map.pop(),
        lambda made: made["net_frame"].ensemble_scheduling.step.pop(0),
        lambda made: setattr(made["net_postprocess"].input[0], "data_type", 10),
        lambda made: setattr(made["net_frame"].ensemble_scheduling.step[0].output_map[0], "key", "pictures"),
    ):
        made = configs(TritonOptions("net"), outputs, spec)
        spoil(made)
        with pytest.raises(AssertionError):
            check_ensemble(made["net_frame"], made)
    for text in (
        'nam: "x"',
        "input { data_type: TYPE_FP31 }",
        "max_batch_size: 1.5",
        "instance_group { kind: KIND_TPU }",
    ):
        with pytest.raises(text_format.ParseError):
            parsed(text)


def test_plans(outputs, spec):
    network = configs(TritonOptions("net", kind="auto", gpus=(0, 2)), outputs, spec, profile=1)["net"]
    assert (network.platform, network.backend, network.default_model_filename) == (
        "tensorrt_plan", "tensorrt", "model.plan",
    )  # fmt: skip
    group = network.instance_group[0]
    assert enum_name(group, "kind") == "KIND_GPU" and list(group.gpus) == [0, 2] and list(group.profile) == ["1"]
    assert not configs(TritonOptions("net"), outputs, spec, profile=0)["net"].instance_group[0].profile


def test_text_is_escaped():
    text = text_of({"name": 'a"b\\c\nd', "input": [{"name": "x", "data_type": Word("TYPE_FP16"), "optional": True}]})
    config = parsed(text)
    assert config.name == 'a"b\\c\nd' and config.input[0].optional
    assert enum_name(config.input[0], "data_type") == "TYPE_FP16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "../up"}, "a model's name must be"),
        ({"name": ""}, "a model's name must be"),
        ({"kind": "tpu"}, "unknown kind 'tpu'; known: auto, gpu, cpu"),
        ({"max_people": 0}, "max_people 0"),
        ({"instances": 0}, "instances 0"),
        ({"delay_us": -1}, "delay_us -1"),
        ({"max_people": 10**11}, "up to 2147483647, got 100000000000"),
        ({"instances": 2**31}, "up to 2147483647"),
        ({"delay_us": 10**23}, "up to 2147483647"),
        ({"gpus": (0, 10**11)}, "up to 2147483647"),
        ({"gpus": (0, -1)}, "gpus 0, -1 must be"),
        ({"gpus": (0,), "kind": "cpu"}, "not for kind cpu"),
        ({"focal_px": 0.0}, "focal length"),
        ({"focal_px": float("inf")}, "focal length"),
        ({"focal_px": float("nan")}, "focal length"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        TritonOptions(**{"name": "net", **options})
