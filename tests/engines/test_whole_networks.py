"""Networks that METRO released, in full size: from the file to ONNX Runtime and to plans, in every precision.

The weights are made up, so millimetres mean nothing: what FP16 and INT8 change is compared with the size of the mesh.
Every step runs in a process of its own, so that the peak memory that it states is its own.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from metro_edge.backends import open_session
from metro_edge.bundle import Bundle
from metro_edge.plans import PlanInfo
from metro_edge.spec import PRECISIONS
from metro_edge.template import BodyTemplate
from tests.reference_weights import reference_images
from tests.released_files import body_with, made_body, released_shapes, released_state, write_reference
from training.checkpoint import load_any, template_points
from training.model import Metro, load_released, preset

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
MOST_GB = 8.0  # of any step
# Of the mesh's size, the most that a precision may move it on these weights; about three times what was seen.
MOST_MOVED = {"fp32": 1e-5, "fp16": 8e-3, "int8": 0.3}
LOOSE = ["fp32=1", "fp16=1000", "int8=100000"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for i in range(6):
        small = random.integers(0, 255, (7, 5, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i}.png"), cv2.resize(small, (200, 280), interpolation=cv2.INTER_CUBIC))
    return folder


def write_original(folder: Path, network: str) -> tuple[BodyTemplate, np.ndarray, dict[str, np.ndarray]]:
    """Write a state dictionary that the original implementation answered on; returns body, images and answers."""
    config = preset(network)
    reference = write_reference(folder / "state_dict.bin", network)
    body = body_with(config, reference["template_joints"], reference["template_vertices"])
    wanted = {"camera": "camera", "joints": "joints", "vertices": f"vertices_{config.vertex_levels[-1]}"}
    images = reference_images(2, int(reference["image_seed"]))
    return body, images, {name: reference[key] for name, key in wanted.items()}


def write_w40(folder: Path) -> tuple[BodyTemplate, np.ndarray, dict[str, np.ndarray]]:
    """No original outputs exist for W40: the answers are those of the network built directly, entry by entry."""
    config = preset("metro_body_hrnet_w40")
    body, state, images = made_body(config), released_state(released_shapes(config)), reference_images(2)
    torch.save(state, folder / "state_dict.bin")
    model = Metro(config, *template_points(body, config)).eval()
    assert load_released(model, state).missing == ()
    assert load_any(folder / "state_dict.bin", body).config.model == config
    with torch.inference_mode():
        found = model(torch.from_numpy(images))
    assert (found.vertices[-1][0] - found.vertices[-1][1]).abs().max() > 1e-3  # it looks at the pictures
    answers = {"camera": found.camera, "joints": found.joints, "vertices": found.vertices[-1]}
    return body, images, {name: values.numpy() for name, values in answers.items()}


def run_step(module: str, *arguments: str | Path) -> str:
    """Run `python -m MODULE ...` and return what it printed; every peak memory in it must be below MOST_GB."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    peaks = re.findall(r"peak memory ([\d.]+) GB", done.stdout)
    assert all(float(peak) < MOST_GB for peak in peaks) and (peaks or sys.platform == "win32"), done.stdout
    return done.stdout


def moved(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean distance of points as a share of their mean distance from the middle."""
    size = np.linalg.norm(wanted - wanted.mean(1, keepdims=True), axis=-1).mean()
    return float(np.linalg.norm(found - wanted, axis=-1).mean() / size)


@pytest.mark.parametrize(
    "network", ["metro_body_resnet50", "metro_body_hrnet_w40", "metro_body_hrnet_w64", "metro_hand_hrnet_w64"]
)
def test_every_precision_from_the_file_to_a_plan(network, pictures, tmp_path):
    body, images, answers = write_w40(tmp_path) if network.endswith("w40") else write_original(tmp_path, network)
    body.save(tmp_path / "body.npz")
    bundle_path = tmp_path / "bundle"
    # Rounding weights on data would take minutes and keep nothing: the weights are noise.
    options: Sequence[str] = ["--rounding", "nearest", "--verify-samples", "2", "--tolerance-mm", *LOOSE]
    body_option = ["--body", f"{body.name}={tmp_path / 'body.npz'}", "--pictures", pictures]
    printed = run_step("engines", "convert", tmp_path / "state_dict.bin", *body_option, "-o", bundle_path, *options)
    assert printed.count("peak memory") >= 7  # reading, PyTorch, folding, export, three precisions, all
    (tmp_path / "state_dict.bin").unlink()  # nearly a GB

    bundle = Bundle.load(bundle_path)
    assert bundle.spec.name == network
    shares = {}
    for precision in PRECISIONS:
        with open_session(bundle, precision, "onnxruntime") as session:
            found = session.infer(images)
        shares[precision] = moved(found.mesh, answers["vertices"])
        if precision == "fp32":
            for name, got in (("camera", found.camera), ("joints", found.joints), ("vertices", found.vertices)):
                assert np.abs(got - answers[name]).max() <= 1e-4 * np.abs(answers[name]).max(), name
    print(f"{network}, moved: " + ", ".join(f"{name} {share:.2e}" for name, share in shares.items()))
    assert all(share <= MOST_MOVED[precision] for precision, share in shares.items()), shares
    assert shares["fp32"] < shares["fp16"] < shares["int8"]
    check_plans(bundle, tmp_path)


def check_plans(bundle: Bundle, folder: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    sizes = {}
    for precision in PRECISIONS:
        plan = folder / f"{precision}.plan"
        run_step("metro_edge", "build", bundle.path, "--precision", precision, "-o", plan, "--batch", "1,1,4")
        info = PlanInfo.load(plan)
        assert info.onnx_sha256 == bundle.onnx_sha256(precision)
        layers = json.loads(plan.with_name(f"{plan.name}.layers.json").read_text())["layers"]
        kinds = {tensor["precision"] for layer in layers for tensor in layer["outputs"]}
        assert {"fp32", precision} <= kinds
        sizes[precision] = info.plan_bytes
        plan.unlink()
    print({precision: f"{size / 1e6:.0f} MB" for precision, size in sizes.items()})
    assert sizes["int8"] < sizes["fp16"] < sizes["fp32"]
