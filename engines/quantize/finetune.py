"""`python -m engines finetune`: a checkpoint trained on with its INT8 rounding in the loop, to stay near its FP32.

The network that was trained is the teacher: its mesh on generated people is what the rounded one is to give. What
comes out is held against what went in, both exported to INT8 and measured on people that neither the training nor the
choice of the best state has seen.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from engines.export import export_onnx
from engines.fold import InferenceNetwork, fold
from engines.quantize.calibrate import calibrate
from engines.quantize.fake import OUTPUTS, FakeNetwork
from engines.quantize.kept import Kept
from engines.quantize.layers import default_layers, node_names
from engines.quantize.loss import BATCH, Judge, Loss
from engines.quantize.qdq import activations, insert_qdq
from engines.quantize.recipe import DATA, METHOD, NEAREST
from engines.quantize.rounding import SAMPLES, Rounded, round_on_data
from engines.quantize.store import Store, hash_of, key_of
from engines.samples import Sources, check_calibration_samples
from engines.simplify import simplify
from metro_edge.errors import UserError
from metro_edge.files import output_folder
from training.checkpoint import Checkpoint, load_any, save_checkpoint
from training.model import Metro

VERSION = 1
STATE = "state.pt"
TRAINED = ("shifts", "all")
BETTER = 0.99  # of the distance from FP32, at most which fine-tuning has to leave to be kept
RATES = {"shifts": 3e-5, "all": 2e-6}
SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Settings:
    """Settings of `python -m engines finetune`.

    Attributes:
        train: `all` trains everything, each weight rounded to its nearest level; `shifts` trains biases and the scales
            of norms and leaves weights as they are, rounded on data.
        steps: of the optimiser (Adam), its rate falling to nothing along half a cosine.
        learning_rate: at the start; None takes what suits `train`.
        batch: samples a step.
        samples: of the training seed, gone through as often as the steps need.
        calibration_samples: of the training seed, that set ranges.
        choice_samples, proof_samples: held out; to choose the best state by, and to measure the result on.
        every: steps between looks at the choice's samples; the state is kept on disk then.
        seed: of held-out people; None takes the run's validation seed.
        data: folder of generated people; None takes the run's.
        pictures: folder of pictures of one person each, in place of generated people.

    Raises UserError for values that make no sense.
    """

    train: str = "all"
    steps: int = 100
    learning_rate: float | None = None
    batch: int = 16
    samples: int = 1024
    calibration_samples: int = 256
    choice_samples: int = 64
    proof_samples: int = 256
    every: int = 10
    seed: int | None = None
    data: Path | None = None
    pictures: Path | None = None

    def __post_init__(self) -> None:
        if self.train not in TRAINED:
            raise UserError(f"--train takes {' or '.join(TRAINED)}, got {self.train!r}")
        check_calibration_samples(self.calibration_samples)
        for name in ("steps", "batch", "samples", "choice_samples", "proof_samples", "every"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.learning_rate is not None and not 0 < self.learning_rate < 1:
            raise UserError(f"--learning-rate must lie between 0 and 1, got {self.learning_rate}")

    @property
    def rate(self) -> float:
        """The learning rate at the start."""
        return self.learning_rate or RATES[self.train]

    @property
    def rounding(self) -> str:
        """How weights are rounded while training."""
        return DATA if self.train == "shifts" else NEAREST


@dataclass(frozen=True)
class Result:
    """What fine-tuning came to.

    Attributes:
        before, after: losses of the INT8 exports on the proof's samples, against the FP32 network that came in.
        rounding: of the better export of the weights that were written.
        kept: whether the written weights are the tuned ones; otherwise they are those that came in.
    """

    before: Loss
    after: Loss
    rounding: str
    kept: bool


def finetune(
    source: Path, output: Path, settings: Settings, work: Path | None, say: Callable[[str], None] = print
) -> Result:
    """Fine-tune a checkpoint for INT8 and write the best that was found, which may be what came in.

    Args:
        source: checkpoint of ours.
        output: checkpoint to write, which `python -m engines convert` takes.
        settings: see Settings.
        work: folder in which a run that was stopped goes on; None keeps nothing.
        say: takes one line of text per step.

    Raises UserError for a checkpoint, samples or places that cannot be used, or a network that cannot be tuned.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; a file for the checkpoint was expected")
    output_folder(output.resolve().parent)
    run = _Run(_checkpoint(source), settings, work, say)
    result = run.result()
    save_checkpoint(output, run.written(result))
    words = f"{result.before.moved_mm:.2f} -> {result.after.moved_mm:.2f} mm from FP32's mesh"
    if result.before.mpjpe_mm is not None:
        words += f", {result.before.mpjpe_mm:+.2f} -> {result.after.mpjpe_mm:+.2f} mm of MPJPE lost"
    verdict = "" if result.kept else "; fine-tuning gained nothing, the weights are those that came in"
    say(f"wrote {output}: INT8 on {run.proof.count} held-out samples: {words}{verdict}")
    return result


def _checkpoint(source: Path) -> Checkpoint:
    if (source / "spec.json").is_file() or source.suffix == ".zip":
        raise UserError(
            f"{source} is a bundle, whose weights are folded and cannot be trained: give the checkpoint that it was "
            "converted from (`checkpoint` in its passport.json)"
        )
    return load_any(source)


class _Run:
    def __init__(
        self, checkpoint: Checkpoint, settings: Settings, work: Path | None, say: Callable[[str], None]
    ) -> None:
        self.checkpoint, self.settings, self.say = checkpoint, settings, say
        self.store = Store(work)
        self.state_path = None if work is None else work / STATE
        self.spec, self.template = checkpoint.config.spec, checkpoint.template
        held = settings.choice_samples + settings.proof_samples
        sources = Sources(
            self.spec, checkpoint.config.data, held, max(settings.samples, settings.calibration_samples),
            settings.seed, settings.data, settings.pictures,
        )  # fmt: skip
        held_out = sources.for_verification()
        if held_out.count < 2:
            raise UserError("one held-out picture is too few: one chooses, another proves")
        edge = min(settings.choice_samples, held_out.count - 1)
        self.choice, self.proof = held_out.part(0, edge), held_out.part(edge, min(held, held_out.count))
        self.training = sources.for_calibration()
        self.model = checkpoint.model.eval()
        self.wanted: list[Tensor] = []  # the teacher's coarse vertices of the choice's samples
        # What is measured of exports is shared by runs of other rates, steps and batches.
        counts = (settings.calibration_samples, edge, held_out.count)
        self.key = key_of(VERSION, checkpoint.sha256, counts, held_out.data, self.training.data)
        about = {k: v for k, v in asdict(settings).items() if k not in ("data", "pictures", "every")}
        self.training_key = key_of(self.key, about)

    # Parts

    @cached_property
    def calibration_images(self) -> NDArray[np.float32]:
        count = min(self.settings.calibration_samples, self.training.count)
        return np.concatenate(list(self.training.part(0, count).batches(BATCH)))

    @cached_property
    def judges(self) -> dict[str, Judge]:
        """Compare with the network that came in, on the choice's and on the proof's samples."""
        made = {}
        for name, images in (("choice", self.choice), ("proof", self.proof)):
            made[name] = Judge(self.graph, self.spec, self.template, *images.all())
        return made

    @cached_property
    def graph(self) -> onnx.ModelProto:
        return self.exported(self.model)

    def exported(self, model: Metro) -> onnx.ModelProto:
        network, _ = fold(model, self.template, outputs=self.spec.outputs)
        return simplify(export_onnx(network, self.spec, self.checkpoint.sha256))

    def thresholds(self, name: str, graph: onnx.ModelProto) -> dict[str, float]:
        """Return the ranges of what the export rounds."""

        def measure() -> dict[str, float]:
            tensors = activations(graph, node_names(default_layers(graph)))
            batches = _batches(self.calibration_images, f"calibrate, {name}")
            return {t: m.threshold(METHOD) for t, m in calibrate(graph, tensors, batches).items()}

        return self.store.remember(key_of(self.key, name, "thresholds"), measure)

    def rounded(self, name: str, graph: onnx.ModelProto) -> dict[str, Rounded]:
        """Return the weights rounded on data."""
        thresholds, nodes = self.thresholds(name, graph), node_names(default_layers(graph))

        def measure() -> dict[str, NDArray[Any]]:
            found = round_on_data(graph, nodes, thresholds, list(_batches(self.calibration_images[:SAMPLES], "")))
            return {f"{node}/{k}": v for node, one in found.items() for k, v in vars(one).items()}

        arrays = self.store.remember_arrays(key_of(self.key, name, "rounded"), measure)
        names = dict.fromkeys(entry.rpartition("/")[0] for entry in arrays)
        return {node: Rounded(*(arrays[f"{node}/{k}"] for k in ("levels", "scale", "shift"))) for node in names}

    def losses(self, name: str, graph: onnx.ModelProto) -> dict[str, dict[str, Loss]]:
        """Return what INT8 exports lose, rounding -> samples -> loss, against FP32 as it came in."""
        thresholds, nodes = self.thresholds(name, graph), node_names(default_layers(graph))
        found: dict[str, dict[str, Loss]] = {}
        for rounding in (NEAREST, DATA):

            def measure(rounding: str = rounding) -> dict[str, dict[str, float | None]]:
                rounded = self.rounded(name, graph) if rounding == DATA else None
                made = insert_qdq(graph, nodes, thresholds, rounded=rounded)
                return {samples: asdict(judge.loss_of(made)) for samples, judge in self.judges.items()}

            values = self.store.remember(key_of(self.key, name, "losses", rounding), measure)
            found[rounding] = {samples: Loss.from_dict(value) for samples, value in values.items()}
            moved = found[rounding]["choice"].moved_mm
            self.say(f"{name}: INT8 with weights rounded {_WORDS[rounding]} is {moved:.2f} mm from FP32's mesh")
        return found

    # Steps

    def result(self) -> Result:
        before = self.losses("as it came", self.graph)
        first = min(before.values(), key=lambda loss: loss["choice"].moved_mm)
        self.tuned = copy.deepcopy(self.model)
        state, seconds = self.train()
        self.tuned.load_state_dict(state)
        self.say(f"trained {self.settings.steps} steps in {seconds:.0f} s")
        digest = hash_of(np.concatenate([value.double().flatten().numpy() for value in state.values()]))
        tuned = self.exported(self.tuned.eval())
        after = self.losses(f"fine-tuned ({digest[:8]})", tuned)
        rounding, last = min(after.items(), key=lambda entry: entry[1]["choice"].moved_mm)
        kept = all(last[name].moved_mm < BETTER * first[name].moved_mm for name in ("choice", "proof"))
        if not kept:
            rounding, last = next(entry for entry in before.items() if entry[1] is first)
        return Result(first["proof"], last["proof"], rounding, kept)

    def written(self, result: Result) -> Checkpoint:
        """Return the checkpoint to write."""
        about = {
            "rounding": result.rounding,
            "from_sha256": self.checkpoint.sha256,
            "train": self.settings.train,
            "steps": self.settings.steps,
            "learning_rate": self.settings.rate,
            "data": f"{self.training.data}; {self.proof.data}",
            "before": asdict(result.before),
            "after": asdict(result.after),
        }
        if not result.kept:
            return replace(self.checkpoint, body=None, entries=None)
        metrics = {**self.checkpoint.metrics, "fine_tuned": about}
        return replace(self.checkpoint, model=self.tuned, metrics=metrics, body=None, entries=None)

    def train(self) -> tuple[dict[str, Tensor], float]:
        """Train; returns the best state by the choice's samples, the start among them, and seconds."""
        settings, start = self.settings, time.perf_counter()
        rounded = self.rounded("as it came", self.graph) if settings.rounding == DATA else None
        network = FakeNetwork(self.model, self.template, self.graph, self.thresholds("as it came", self.graph), rounded)
        teacher = InferenceNetwork(self.model, self.template, OUTPUTS)
        parameters = network.parameters_of(settings.train)
        for value in network.parameters():
            value.requires_grad_(False)
        for value in parameters:
            value.requires_grad_(True)
        optimizer = torch.optim.Adam(parameters, lr=settings.rate)
        kept = Kept(self.state_path, self.training_key, network, optimizer)
        if kept.step is None:
            kept.look(0, self.moved(network, teacher))
        self.say(f"rounded in PyTorch: {kept.first_mm:.2f} mm from FP32's mesh" + kept.resumed)
        order = _order(self.training.count, settings.batch, settings.steps)
        with tqdm(total=settings.steps, initial=kept.step or 0, desc="fine-tune", unit="step") as bar:
            for step in range(kept.step or 0, settings.steps):
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate * 0.5 * (1 + math.cos(math.pi * step / settings.steps))
                images = torch.from_numpy(np.stack([self.training.item(int(i))[0] for i in order[step]]))
                loss = distance(network(images), _teach(teacher, images))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                bar.update()
                bar.set_postfix(mm=f"{float(loss.detach()) * 1000:.2f}", best=f"{kept.best_mm:.2f}")
                if (step + 1) % settings.every == 0 or step + 1 == settings.steps:
                    network.refresh()
                    kept.look(step + 1, self.moved(network, teacher))
        return kept.best, time.perf_counter() - start

    @torch.no_grad()
    def moved(self, network: FakeNetwork, teacher: InferenceNetwork) -> float:
        """Return the mean distance in mm of coarse vertices from FP32's on the choice's samples."""
        batches = [torch.from_numpy(batch) for batch in self.choice.batches(BATCH)]
        if not self.wanted:
            self.wanted = [teacher(images)[2] for images in batches]
        pairs = zip(batches, self.wanted, strict=True)
        return (
            float(torch.cat([(network(images)[2] - mesh).norm(dim=-1).mean(1) for images, mesh in pairs]).mean()) * 1000
        )


_WORDS = {NEAREST: "to the nearest level", DATA: "on data"}


def distance(found: tuple[Tensor, ...], wanted: Mapping[str, Tensor]) -> Tensor:
    """Return the mean distance of a batch's meshes and joints in metres; where the camera puts them counts too.

    Args:
        found: camera (N, 3), joints (N, J, 3) and coarse vertices (N, C, 3).
        wanted: the same by name.
    """
    camera, joints, coarse = found
    meshes = (coarse - wanted["coarse"]).norm(dim=-1).mean()
    own = (joints - wanted["joints"]).norm(dim=-1).mean()
    flat = camera[:, None, :1] * (wanted["coarse"][..., :2] + camera[:, None, 1:])
    other = wanted["camera"][:, None, :1] * (wanted["coarse"][..., :2] + wanted["camera"][:, None, 1:])
    return meshes + 0.5 * own + 0.5 * (flat - other).norm(dim=-1).mean()


@torch.no_grad()
def _teach(teacher: InferenceNetwork, images: Tensor) -> dict[str, Tensor]:
    return dict(zip(OUTPUTS, teacher(images), strict=True))


def _order(count: int, batch: int, steps: int) -> NDArray[np.int64]:
    """Return which samples each step takes, (steps, batch): shuffled, all once before any twice."""
    random = np.random.default_rng(SHUFFLE_SEED)
    rounds = [random.permutation(count) for _ in range(-(-batch * steps // count))]
    return np.concatenate(rounds)[: batch * steps].reshape(steps, batch)


def _batches(images: NDArray[np.float32], title: str) -> Iterator[NDArray[np.float32]]:
    for start in tqdm(range(0, len(images), BATCH), desc=title, leave=False, disable=not title):
        yield images[start : start + BATCH]
