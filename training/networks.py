"""A network to evaluate, whatever file it comes from: a checkpoint of ours, one that METRO released, or a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from metro_edge.bundle import PASSPORT_FILE, Bundle
from metro_edge.errors import UserError
from metro_edge.spec import ModelSpec
from metro_edge.template import BodyTemplate
from training.evaluate import Predict, predictor

DEFAULT_SEED = 2  # of generated people that are held out, as in training.config.DataConfig


@dataclass(frozen=True)
class Network:
    """What an evaluation needs of a network.

    Attributes:
        spec, template: its ModelSpec and body.
        predict: images (N, 3, S, S) float32 -> full meshes (N, V, 3) metres.
        sha256: of the checkpoint that it comes from.
        held_out_seed: of generated people that it was not trained on.
        engine: what runs it.
    """

    spec: ModelSpec
    template: BodyTemplate
    predict: Predict
    sha256: str
    held_out_seed: int = DEFAULT_SEED
    engine: str = "PyTorch fp32"


def open_network(
    path: str | Path, body: str = "", precision: str = "fp32", device: str = "auto", threads: int | None = None
) -> Network:
    """Open a checkpoint (file or METRO's folder) in PyTorch, or a bundle (folder or .zip) in ONNX Runtime.

    Args:
        path: of the network.
        body: `NAME=PATH` of its body, such as `smpl=FOLDER`; what METRO released needs it, see training.bodies.
        precision: of a bundle; PyTorch runs in fp32.
        device: of PyTorch, such as `cpu` or `cuda`; `auto` takes a GPU if there is one.
        threads: of ONNX Runtime; None leaves it to the engine.

    Raises:
        UserError: as load_any, Bundle.load and open_session; a precision for a checkpoint; a device for a bundle, or
            one that is not there.
    """
    if _is_bundle(Path(path)):
        if device != "auto":
            raise UserError(f"{path} is a bundle, which runs on ONNX Runtime: --device is for checkpoints")
        return _open_bundle(path, precision, threads)
    if precision != "fp32":
        raise UserError(f"{path} is a checkpoint and runs in fp32; {precision} is for bundles (engines convert)")
    import torch

    from training.bodies import body_template, parse_body
    from training.checkpoint import load_any

    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    name, body_path = parse_body(body) if body else ("", "")
    checkpoint = load_any(path, body_template(name, body_path) if name else None, body_path)
    config = checkpoint.config
    if name and name != config.model.body:
        raise UserError(f"{path} is a network of the body {config.model.body!r}, not of {name!r}")
    try:
        model = checkpoint.model.to(chosen)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"cannot run on device {chosen!r}: {str(error).splitlines()[0]}") from None
    seed = config.data.validation_seed
    return Network(config.spec, checkpoint.template, predictor(model, chosen), checkpoint.sha256, seed)


def _is_bundle(path: Path) -> bool:
    return path.suffix == ".zip" or (path / PASSPORT_FILE).is_file()


def _open_bundle(path: str | Path, precision: str, threads: int | None) -> Network:
    from metro_edge.backends import open_session

    bundle = Bundle.load(path)
    session = open_session(bundle, precision, threads=threads)
    return Network(
        bundle.spec,
        bundle.template,
        lambda images: session.infer(images).mesh,
        str(bundle.passport["checkpoint"]["sha256"]),
        engine=f"{session.device} {precision}",
    )
