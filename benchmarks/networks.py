"""The network that `against` times: shipped, the user's own, or a released architecture with reference weights.

METRO's released weights may not be redistributed, and latency does not depend on them: a released architecture is
filled with seeded numbers, scaled so that activations neither vanish nor overflow. Errors in millimetres mean nothing
for such a network; errors relative to its outputs do.
"""

from __future__ import annotations

import hashlib
import itertools
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import file_part
from engines.export import export_onnx
from engines.fold import fold
from engines.half import half
from engines.quantize import quantise
from engines.simplify import simplify
from metro_edge import __version__
from metro_edge.bundle import Bundle, onnx_file, shipped_bundle_path, write_bundle
from metro_edge.errors import UserError
from metro_edge.files import output_folder, replacing, staging_folder
from metro_edge.machine import describe_machine
from metro_edge.template import BodyTemplate, SparseMatrix
from training.bodies import body_template
from training.checkpoint import Checkpoint, load_any, template_points
from training.config import FitConfig
from training.model import Metro, MetroConfig
from training.model.presets import PRESETS, preset

CACHE = Path("runs") / "against"
SHIPPED_CHECKPOINT = Path("training") / "weights" / "metro_edge.pt"
SEED = 0
CALIBRATION_IMAGES = 4
RECIPE = 1  # of reference weights and of how their bundle is made; a new one does not find the old one's files
TRAINED, REFERENCE = "trained", f"reference, seed {SEED}: not trained"
_SPREAD = 0.1  # of what the last layers give, so that a mesh is of human size
_BODY_M = 0.3  # standard deviation of the made body's points


@dataclass(frozen=True, eq=False)
class Subject:
    """A network in all forms that are compared.

    Attributes:
        name: of the network.
        weights: TRAINED or REFERENCE.
        model: in PyTorch, evaluation mode, FP32.
        plain: ONNX file of the network as it was trained: nothing folded, nothing simplified, FP32.
        bundle: the same network as metro-edge converts it.
        calibration: what INT8 was calibrated on, in words.
    """

    name: str
    weights: str
    model: Metro
    plain: Path
    bundle: Bundle
    calibration: str

    @property
    def trained(self) -> bool:
        """Whether millimetres mean something."""
        return self.weights == TRAINED


def from_bundle(
    path: Path | None, checkpoint: Path | None, body: tuple[str, str] | None, cache: Path = CACHE
) -> Subject:
    """Return a bundle's network with the checkpoint that it was made of.

    Args:
        path: of the bundle, None for the shipped one.
        checkpoint: None for the shipped one, which goes with the shipped bundle alone.
        body: name and place of the network's body, which released networks need.
        cache: folder of plain exports.

    Raises:
        UserError: no checkpoint, or that of another network.
    """
    bundle = Bundle.load(path or shipped_bundle_path())
    file = checkpoint or SHIPPED_CHECKPOINT
    loaded = load_any(file) if body is None else load_any(file, body_template(*body), body[1])
    made_of = bundle.passport["checkpoint"]
    if loaded.sha256 != made_of["sha256"]:
        raise UserError(
            f"bundle {bundle.path} was made of the checkpoint {made_of['name']} with SHA-256 {made_of['sha256'][:12]}, "
            f"{file} has {loaded.sha256[:12]}: give the bundle's own with --checkpoint, or nothing is compared alike"
        )
    folder = output_folder(cache / f"{file_part(bundle.spec.name)}-{loaded.sha256[:12]}-{_code_key()}")
    spec = bundle.spec
    plain = _plain_export(loaded, folder, spec)
    calibration = bundle.passport.get("calibration", {}).get("data", "not stated")
    return Subject(spec.name, TRAINED, loaded.model, plain, bundle, calibration)


def from_preset(name: str, cache: Path = CACHE, say: Callable[[str], None] = print) -> Subject:
    """Return a released architecture with reference weights, converted once and kept in `cache` (minutes, under 8 GB).

    Args:
        name: of `training.model.presets`, with - or _.
        cache: folder of what was converted.
        say: takes a line of text per step that takes long.

    Raises:
        UserError: an unknown name, or a cache that cannot be written.
    """
    config = preset(name.replace("-", "_")) if name.replace("-", "_") in PRESETS else _unknown(name)
    folder = output_folder(cache / f"{config.name}-reference-{_code_key()}")
    calibration = f"{CALIBRATION_IMAGES} images of noise"
    path = folder / "bundle"
    if not path.exists():
        say(f"converting {config.name} with reference weights, kept in {path}")
        _convert(lambda: reference_checkpoint(config), path, calibration)
    checkpoint = reference_checkpoint(config)
    plain = _plain_export(checkpoint, folder, checkpoint.config.spec)
    return Subject(config.name, REFERENCE, checkpoint.model, plain, Bundle.load(path), calibration)


def _unknown(name: str) -> MetroConfig:
    known = ", ".join(sorted(key.replace("_", "-") for key in PRESETS))
    raise UserError(f"unknown network {name!r}; known: {known}")


def reference_checkpoint(config: MetroConfig, seed: int = SEED) -> Checkpoint:
    """Return a network of `config` with reference weights, and a made body of its mesh levels."""
    body = made_body(config, seed)
    model = Metro(config, *template_points(body, config), body.upsampling)
    state = {name: _reference_tensor(name, value, config, seed) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    run = FitConfig(config.name, config, crop_rule="metro_eval")
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode() + value.numpy().tobytes())
    return Checkpoint(model.eval(), run, {}, digest.hexdigest(), body)


def made_body(config: MetroConfig, seed: int = SEED) -> BodyTemplate:
    """Return points of human size with the network's mesh levels and joints; it is no body, and nobody's data."""
    random = np.random.default_rng(seed)
    counts = config.vertex_levels
    steps = tuple(
        SparseMatrix((np.arange(fine)[:, None] % coarse).astype(np.int32), np.ones((fine, 1), np.float32))
        for coarse, fine in itertools.pairwise(counts)
    )
    at = random.choice(counts[-1], config.num_joints, replace=False).astype(np.int32)[:, None]
    faces = np.array([[0, 1, 2]], np.int32)
    return BodyTemplate(
        name=config.body,
        vertices=random.normal(0, _BODY_M, (counts[-1], 3)).astype(np.float32),
        faces=faces,
        level_vertices=tuple(np.arange(count, dtype=np.int32) for count in counts),
        level_faces=tuple(faces for _ in counts),
        upsampling=steps,
        regressors={config.joint_set: SparseMatrix(at, np.ones((len(at), 1), np.float32))},
        licence="random numbers",
    )


def noise_images(count: int, size: int, seed: int) -> NDArray[np.float32]:
    """Return (count, 3, size, size) float32 of a normal distribution, as normalised pictures have on average."""
    return np.random.default_rng(seed).normal(0, 1, (count, 3, size, size)).astype(np.float32)


def _reference_tensor(name: str, value: Tensor, config: MetroConfig, seed: int) -> Tensor:
    """Return the weight called `name`: a function of name, shape and seed; the body's own entries stay."""
    kind = name.rsplit(".", 1)[-1]
    # The body's own: its points, and the weights between a vertex and its neighbours.
    if not value.is_floating_point() or name.startswith("template_") or kind == "weights":
        return value
    random = np.random.default_rng((zlib.crc32(name.encode()) + seed) % 2**32)
    shape = tuple(value.shape)
    if kind == "running_var":
        made = random.uniform(0.8, 1.2, shape)
    elif kind == "weight" and len(shape) == 1:
        # Residual networks double the variance at each sum; scales below 1 keep it level.
        made = random.uniform(0.6, 0.8, shape) if name.startswith("backbone.") else random.uniform(0.8, 1.2, shape)
    elif len(shape) <= 1:
        made = random.normal(0, 0.02, shape)
    else:
        made = random.normal(0, 1, shape) / np.sqrt(np.prod(shape[1:]))
    last = f"encoders.{len(config.blocks) - 1}."
    if name.startswith((f"{last}output", f"{last}residual")):
        made = made * _SPREAD
    elif name == "camera_head.output.bias":
        made = np.array([0.9, 0.0, 0.0])
    elif name.startswith("camera_head.output"):
        made = made * 0.1 * _SPREAD
    return torch.from_numpy(np.asarray(made, np.float32))


def _plain_export(checkpoint: Checkpoint, folder: Path, spec: Any) -> Path:
    path = folder / "plain.onnx"
    if not path.exists():
        network, _ = fold(checkpoint.model, checkpoint.template, (), spec.outputs)
        graph = export_onnx(network, spec, checkpoint.sha256)
        with replacing(path) as partial:
            onnx.save(graph, partial)
    return path


def _convert(make: Callable[[], Checkpoint], path: Path, calibration: str) -> None:
    """Fold, export, simplify, halve and quantise, as `python -m engines convert` does, without pictures of people.

    Takes what makes the checkpoint, and not itself: a large one must be let go of before its graph is simplified.
    """
    checkpoint = make()
    spec, template, sha256 = checkpoint.config.spec, checkpoint.template, checkpoint.sha256
    images = noise_images(CALIBRATION_IMAGES, spec.image_size, SEED + 1)
    with staging_folder(path.parent) as staging:
        network, _ = fold(checkpoint.model, template)
        del checkpoint
        exported = staging / "exported.onnx"
        onnx.save(export_onnx(network, spec, sha256), exported)
        del network
        model = simplify(exported)
        exported.unlink()
        files = {precision: staging / onnx_file(precision) for precision in ("fp32", "fp16", "int8")}
        onnx.save(model, files["fp32"])
        onnx.save(half(model), files["fp16"])
        # Rounding on data tunes noise and takes minutes; the arithmetic of the graph is the same.
        onnx.save(quantise(model, (image[None] for image in images), rounding="nearest"), files["int8"])
        passport = {
            "checkpoint": {"name": f"{spec.name}, {REFERENCE}", "sha256": sha256},
            "licences": {"weights": "random numbers", "body": template.licence},
            "versions": {"metro-edge": __version__, "torch": torch.__version__, "onnx": onnx.__version__},
            "calibration": {"data": calibration, "samples": CALIBRATION_IMAGES, "rounding": "nearest"},
        }
        write_bundle(path, spec, template, files, passport)


def _code_key() -> str:
    """Return what tells files of other versions of the code that made them."""
    versions = describe_machine(("torch", "onnx", "onnxscript", "onnxsim"))["versions"]
    text = f"{RECIPE} {__version__} {sorted(versions.items())}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]
