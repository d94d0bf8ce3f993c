"""Writing the model repository."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from metro_edge.bundle import Bundle
from metro_edge.errors import BundleError, UserError
from metro_edge.files import output_folder, reason, sha256_of, staging_folder
from metro_edge.plans.info import PlanInfo
from metro_edge.spec import INPUT_NAME
from metro_edge.triton import config
from metro_edge.triton.config import Tensor, TritonOptions
from metro_edge.triton.serving import BODY_FILE, SPEC_FILE

VERSION = "1"
CONFIG_FILE = "config.pbtxt"
MODEL = '''\
"""{mark}"""

from metro_edge.triton.serving import {name} as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
_TYPES = {"tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16"}


def export_triton(
    bundle: Bundle,
    precision: str,
    repository: str | os.PathLike[str],
    options: TritonOptions,
    plan: str | os.PathLike[str] | None = None,
) -> list[Path]:
    """Write the five models of a bundle into a model repository; returns their folders. The same input, the same bytes.

    Args:
        bundle, precision: the network.
        repository: a folder; what else is in it stays. Models of these names are replaced if they were written by this
            function.
        options: names and how they are served.
        plan: a TensorRT plan of that network, with its sidecar; None writes the ONNX graph.

    Raises:
        UserError: a model of that name that is somebody else's, a place that cannot be written, or a plan that Triton
            cannot run so.
        PlanMismatchError: a plan that is damaged or of another network.
        BundleError: the bundle lacks the precision, or its graph is not the spec's.
    """
    graph = bundle.onnx_bytes(precision)
    inputs, outputs = _tensors(graph, bundle)
    profile = None if plan is None else _checked_profile(Path(plan), sha256_of(graph), options)
    files: dict[str, dict[str, bytes]] = {
        "network": {CONFIG_FILE: config.network_config(options, inputs, outputs, profile).encode()},
        "preprocess": {
            CONFIG_FILE: config.preprocess_config(options, inputs[0]).encode(),
            f"{VERSION}/model.py": _model("PreprocessModel"),
            f"{VERSION}/{SPEC_FILE}": bundle.spec.to_json().encode(),
        },
        "postprocess": {
            CONFIG_FILE: config.postprocess_config(options, outputs, bundle.spec).encode(),
            f"{VERSION}/model.py": _model("PostprocessModel"),
            f"{VERSION}/{SPEC_FILE}": bundle.spec.to_json().encode(),
        },
        **{
            role: {CONFIG_FILE: config.ensemble_config(options, role, outputs, inputs[0], bundle.spec).encode()}
            for role in ("frame", "picture")
        },
    }
    folder = output_folder(repository)
    targets = {role: folder / name for role, name in options.names.items()}
    for target in targets.values():
        _check_replaceable(target)
    with staging_folder(folder) as staging:
        try:
            for role, content in files.items():
                (staging / role / VERSION).mkdir(parents=True)  # an ensemble's is empty, but must be there
                for name, data in content.items():
                    (staging / role / name).write_bytes(data)
            bundle.template.save(staging / "postprocess" / VERSION / BODY_FILE)
            if plan is None:
                (staging / "network" / VERSION / "model.onnx").write_bytes(graph)
            else:
                shutil.copyfile(plan, staging / "network" / VERSION / "model.plan")
            _move_into_place(staging, targets)
        except OSError as error:
            raise UserError(f"cannot write into {folder}: {reason(error)}") from None
    return list(targets.values())


def _move_into_place(staging: Path, targets: dict[str, Path]) -> None:
    """Replace all of the models, or none of them."""
    older = staging / "older"
    older.mkdir()
    done: list[str] = []
    try:
        for role, target in targets.items():
            if target.exists():
                os.rename(target, older / role)
            done.append(role)
            os.rename(staging / role, target)
    except OSError:
        for role in done:
            if targets[role].exists():
                shutil.rmtree(targets[role], ignore_errors=True)
            if (older / role).exists():
                os.rename(older / role, targets[role])
        raise


def _model(name: str) -> bytes:
    return MODEL.format(mark=config.MARK.strip("# \n"), name=name).encode()


def _check_replaceable(target: Path) -> None:
    if not target.exists():
        return
    try:
        ours = (target / CONFIG_FILE).read_text(encoding="utf-8").startswith(config.MARK)
    except (OSError, UnicodeDecodeError):
        ours = False
    if not ours:
        raise UserError(f"{target} is in the way and was not written by export-triton: choose another --name")


def _tensors(graph: bytes, bundle: Bundle) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs and outputs of an ONNX graph, as ONNX Runtime sees them."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # only its borders are looked at
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but Exception
        raise BundleError(f"ONNX Runtime cannot load the network of {bundle.path}: {error}") from None

    def described(tensors: Any) -> list[Tensor]:
        found = []
        for tensor in tensors:
            batch, *dims = tensor.shape
            if isinstance(batch, int):
                raise UserError(
                    f"the network of {bundle.path} takes {batch} images at once alone: Triton batches freely"
                )
            if tensor.type not in _TYPES or not all(isinstance(size, int) for size in dims):
                raise BundleError(f"{tensor.name} of the network of {bundle.path} is {tensor.type} {tensor.shape}")
            found.append(Tensor(tensor.name, _TYPES[tensor.type], tuple(dims)))
        return found

    inputs, outputs = described(session.get_inputs()), described(session.get_outputs())
    if [t.name for t in inputs] != [INPUT_NAME] or {t.name for t in outputs} != set(bundle.spec.outputs):
        raise BundleError(f"the network of {bundle.path} is not the one of its spec")
    return inputs, outputs


def _checked_profile(plan: Path, onnx_sha256: str, options: TritonOptions) -> int:
    """Return the number of the plan's profile that takes 1 to `max_people` people; raises UserError."""
    info = PlanInfo.load(plan)
    if info.onnx_sha256 != onnx_sha256:
        raise UserError(
            f"plan {plan} was built from another ONNX graph (SHA-256 {info.onnx_sha256[:12]}, not {onnx_sha256[:12]})"
        )
    if info.library != "tensorrt":
        raise UserError(f"plan {plan} is of {info.library}: Triton's backend runs plans of tensorrt alone")
    if options.kind == "cpu":
        raise UserError("a plan runs on a GPU: --kind cpu goes with the ONNX graph")
    for number, profile in enumerate(info.profiles):
        if profile.smallest == 1 and profile.largest >= options.max_people:
            return number
    batches = ", ".join(f"{profile.smallest} to {profile.largest}" for profile in info.profiles)
    raise UserError(
        f"plan {plan} takes batches of {batches}, none of 1 to {options.max_people}: "
        "set --max-people, or build it with another --batch"
    )
