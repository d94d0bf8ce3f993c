"""`python -m engines quantize`: a bundle, a budget in mm and a device or backend -> its fastest mix, with the proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from tqdm import tqdm

from engines.quantize.calibration import Calibrated, calibrated
from engines.quantize.clock import candidate
from engines.quantize.data import Samples, Wanted, check_data, samples_of
from engines.quantize.layers import Layer, default_layers, quantisable
from engines.quantize.loss import Judge, Loss
from engines.quantize.mixed import mixed
from engines.quantize.problem import NetworkProblem
from engines.quantize.report import write_report
from engines.quantize.search import REFERENCE, Found, search
from engines.quantize.sensitivity import Item, Sensitivities, group_items, harms, single_items, too_many
from engines.quantize.settings import Settings
from engines.quantize.source import fp32_graph
from engines.quantize.speed import MeasuredSpeed, PredictedSpeed, Speed
from engines.quantize.store import Store, hash_of, key_of
from engines.quantize.units import plan
from engines.quantize.write import write_result, written_as
from engines.usage import Usage
from metro_edge.backends import open_session
from metro_edge.bundle import Bundle, check_replaceable
from metro_edge.devices import device
from metro_edge.errors import UserError
from metro_edge.files import output_folder

VERSION = 2  # of what is measured and how; results of another one are not taken over
ROUNDS = 4  # searches at most, each with a smaller budget, when results fail on samples that they have not seen
PROVEN = 3  # mixes of a search that are tried on those samples, fastest first
SHARE = 0.1  # of the budget, below which FP16 as a whole is not worth measuring layer by layer
FINE, COARSE = 32, 16  # groups at most
OPENED = 0.25  # of an even share of the budget, above which a group is measured layer by layer


@dataclass
class Result:
    """What a search came to.

    Attributes:
        found: of the search on the search's samples.
        layers: precision per layer of the best mix.
        proof: its loss on samples that the search did not see.
        fp32_ms, ms: times of FP32 and of the best mix, measured or predicted.
        report: what the report holds, as JSON takes it.
        bundle: written, None where nothing was.
    """

    found: Found
    layers: dict[str, str]
    proof: Loss
    fp32_ms: float
    ms: float
    report: dict[str, Any]
    bundle: Bundle | None = None


def quantize(
    source: Path,
    output: Path,
    settings: Settings,
    report: Path,
    work: Path | None,
    say: Callable[[str], None] = print,
) -> Result:
    """Search the fastest mix of precisions that keeps a budget, write it as a bundle, and report.

    Args:
        source: bundle, folder or .zip; its fp32 graph is what is quantised.
        output: bundle to write; may be `source`.
        settings: see Settings.
        report: folder for the report.
        work: folder for what was measured, taken up by the next call; None keeps nothing.
        say: takes one line of text per step.

    Raises:
        UserError: settings, samples, bundle or places that cannot be used; or nothing but FP32 keeps the budget, or
            nothing is faster. In these two cases the report is written, and no bundle.
    """
    check_replaceable(output)
    bundle = Bundle.load(source)
    check_data(bundle, settings.data, _wanted(settings))  # before a folder is made
    output_folder(report)
    run = _Run(bundle, settings, Store(work), say)
    result = run.result()
    write_report(report, result.report)
    say(f"report: {report}")
    _check(result, settings, report)
    precision = written_as(result.layers)
    images, truth = run.all_samples()
    about = {key: result.report[key] for key in ("settings", "samples", "calibration", "speed", "best")}
    data = f"{run.samples.search.data}; {run.samples.proof.data}"
    result.bundle = write_result(run.bundle, output, run.graph(result.layers), precision, images, truth, data, about)
    say(f"wrote {output}: {precision} is the mix")
    return result


def _wanted(settings: Settings) -> Wanted:
    return Wanted(settings.calibration_samples, settings.samples, settings.proof_samples, settings.seed)


def _check(result: Result, settings: Settings, report: Path) -> None:
    """Raise UserError when the best mix is FP32 itself, or turns out to be no faster."""
    if set(result.layers.values()) != {REFERENCE} and result.ms < result.fp32_ms:
        return
    tried = [trial for trial in result.found.trials if set(trial.choice) != {REFERENCE}]
    nearest = min(tried, key=lambda trial: trial.lost_mm)
    within = [trial for trial in tried if trial.lost_mm <= settings.max_loss_mm]
    if not within:
        raise UserError(
            f"no mix keeps {settings.max_loss_mm:g} mm of {result.report['metric']}: the best of {len(tried)} loses "
            f"{nearest.lost_mm:.3g} mm (expected {nearest.estimate_ms:.3g} ms, fp32 {result.fp32_ms:.3g} ms). Nothing "
            f"was written but the report in {report}. Allow more, or more layers in FP32: --precisions fp16; or train "
            "the checkpoint on with INT8's rounding: python -m engines finetune"
        )
    fastest = min(trial.ms or trial.estimate_ms for trial in within)
    raise UserError(
        f"nothing is faster than fp32 within {settings.max_loss_mm:g} mm ({result.report['speed']['label']}): fp32 "
        f"takes {result.fp32_ms:.3g} ms, the fastest of {len(within)} mixes that keep the budget {fastest:.3g} ms. "
        f"Nothing was written but the report in {report}: run fp32 here, or search for another backend or --device"
    )


@dataclass
class _Run:
    bundle: Bundle
    settings: Settings
    store: Store
    say: Callable[[str], None]
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        plain, _ = fp32_graph(self.bundle)
        self.samples: Samples = samples_of(self.bundle, self.settings.data, _wanted(self.settings))
        self.images, self.truth = self.samples.search.all()
        spec, template = self.bundle.spec, self.bundle.template
        self.judge = Judge(plain, spec, template, self.images, self.truth)
        self.proof_images, self.proof_truth = self.samples.proof.all()
        self.proof_judge = Judge(plain, spec, template, self.proof_images, self.proof_truth)
        self.metric = self.settings.metric
        if not self.judge.knows(self.metric):
            self.say(f"{self.metric} cannot be measured on these samples: the distance moved from fp32 is the loss")
            self.metric = "moved"
        self.about = key_of(VERSION, self.bundle.onnx_sha256("fp32"), hash_of(self.images), hash_of(self.truth))
        self.calibrated: Calibrated = calibrated(
            plain, self.judge, self.samples.calibration, self.settings, self.store, self.about, self.say
        )
        self.model = self.calibrated.model
        self.about = key_of(self.about, self.calibrated.key)

    # Parts

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        return quantisable(self.model)

    def make(self, model: onnx.ModelProto, choice: Mapping[str, str]) -> onnx.ModelProto:
        return mixed(model, choice, self.calibrated.thresholds, self.calibrated.rounded)

    def graph(self, choice: Mapping[str, str]) -> onnx.ModelProto:
        lower = {name: p for name, p in choice.items() if p != REFERENCE}
        return self.make(self.model, lower) if lower else self.model

    @cached_property
    def speed(self) -> Speed:
        if self.settings.device is not None:
            return PredictedSpeed(device(self.settings.device))
        return MeasuredSpeed(
            self.bundle, self.images[:1], self.settings.backend, self.settings.threads, self.store, self.about
        )

    def all_samples(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the samples of search and proof."""
        both = None if self.truth is None or self.proof_truth is None else [self.truth, self.proof_truth]
        return np.concatenate([self.images, self.proof_images]), None if both is None else np.concatenate(both)

    # Steps

    def result(self) -> Result:
        speed = self.speed
        units = plan(self.model, self.layers)
        costs = speed.costs(self.model, units, self.settings.precisions, self.make)
        items, losses = self.sensitivities()
        expected = {p: self.expected(items, losses, p) for p in self.settings.precisions}
        with tqdm(total=self.settings.evaluations, desc="mixes", leave=False) as bar:
            problem = NetworkProblem(
                items, (*self.settings.precisions, REFERENCE), self.layers, expected, self.graph, self.judge,
                self.metric, speed, costs, self.store, self.about, lambda loss: bar.update() and None,
            )  # fmt: skip
            found, proof = self.searched(problem)
        best = problem.per_layer(found.best.choice)
        fp32_ms, ms = problem.confirmed_ms(found.best.choice)
        report = self.report(problem, found, proof, items, losses, expected, (fp32_ms, ms))
        self.say(
            f"best: {_counts(best)}; {ms:.3g} ms, fp32 {fp32_ms:.3g} ms ({fp32_ms / ms:.2f} times as fast), "
            f"{speed.label}; loses {found.best.lost_mm:.3f} mm of {self.metric}, {proof.of(self.metric):.3f} mm on "
            f"{self.proof_judge.count} samples it has not seen; {self.usage}"
        )
        return Result(found, best, proof, fp32_ms, ms, report)

    def sensitivities(self) -> tuple[tuple[Item, ...], dict[str, dict[str, Loss]]]:
        """Measure what there is to choose, in the detail that is wanted; returns items and losses per precision."""
        walker = Sensitivities(self.model, self.judge, self.layers, self.make, self.store, self.about)
        coarse = self.settings.detail == "coarse"
        groups = self.settings.detail == "groups" or (
            self.settings.detail == "auto" and too_many(self.layers, self.judge.count)
        )
        lowest = self.settings.lowest
        items = single_items(self.layers)
        if groups or coarse:
            items = group_items(self.model, self.layers, COARSE if coarse else FINE)
        losses: dict[str, dict[str, Loss]] = {}
        if lowest is not None:
            losses[lowest] = walker.measure(items, lowest)
            if groups:
                items = self.opened(items, harms(losses[lowest], self.metric))
                losses[lowest] = walker.measure(items, lowest)
        if "fp16" in self.settings.precisions and self.half_matters():
            losses["fp16"] = walker.measure(items, "fp16")
        return items, losses

    def opened(self, items: tuple[Item, ...], expected: Mapping[str, float]) -> tuple[Item, ...]:
        """Return the items with groups that lose much as single layers."""
        layers = {item.name: item for item in single_items(self.layers)}
        limit = OPENED * self.settings.max_loss_mm / len(items)
        found: list[Item] = []
        for item in items:
            found += [layers[name] for name in item.layers] if expected[item.name] > limit else [item]
        return tuple(found)

    @cached_property
    def half_loss(self) -> Loss:
        """The loss of FP16 as a whole."""
        choice = {layer.name: "fp16" for layer in self.layers}
        key = key_of(self.about, "mix", sorted(choice.items()))
        return Loss.from_dict(self.store.remember(key, lambda: asdict(self.judge.loss_of(self.graph(choice)))))

    def half_matters(self) -> bool:
        loss = self.half_loss
        return loss.of(self.metric) + 2 * loss.error_of(self.metric) > SHARE * self.settings.max_loss_mm

    def expected(
        self, items: tuple[Item, ...], losses: Mapping[str, dict[str, Loss]], precision: str
    ) -> dict[str, float]:
        """Return the expected loss of each item in mm; of FP16 where it was not measured, by multiply-adds."""
        if precision in losses:
            return harms(losses[precision], self.metric)
        whole = max(self.half_loss.of(self.metric), self.half_loss.error_of(self.metric), 1e-6)
        total = sum(item.macs + 1 for item in items)
        return {item.name: whole * (item.macs + 1) / total for item in items}

    def searched(self, problem: NetworkProblem) -> tuple[Found, Loss]:
        """Search until the result keeps the budget on samples that it has not seen."""
        budget = self.settings.max_loss_mm
        default = {layer.name: self.settings.lowest or REFERENCE for layer in default_layers(self.model)}
        starts = {"default layers": problem.choice_of(default)}
        for _ in range(ROUNDS):
            found = search(problem, budget, starts, evaluations=self.settings.evaluations, seed=self.settings.seed or 0)
            for trial in found.timed[:PROVEN]:
                proof = self.proven(problem.per_layer(trial.choice))
                if proof.of(self.metric) <= self.settings.max_loss_mm:
                    return replace(found, best=trial), proof
                self.say(
                    f"a mix of {trial.ms:.3g} ms loses {trial.lost_mm:.3f} mm, but {proof.of(self.metric):.3f} mm on "
                    "samples that the search has not seen: not taken"
                )
            budget = max(0.0, min(0.5 * budget, found.best.lost_mm - 0.5 * budget))
        plain = next(trial for trial in found.trials if set(trial.choice) == {REFERENCE})
        return replace(found, best=plain), self.proven({})

    def proven(self, layers: Mapping[str, str]) -> Loss:
        """Return the loss of a mix on the proof's samples, on the backend whose times count."""
        key = key_of(self.about, "proof", hash_of(self.proof_images), self.settings.backend, sorted(layers.items()))

        def measure() -> dict[str, float | None]:
            graph = self.graph({name: p for name, p in layers.items() if p != REFERENCE})
            if self.settings.device is not None or self.settings.backend == "onnxruntime":
                return asdict(self.proof_judge.loss_of(graph))
            made, precision = candidate(self.bundle, graph)
            with open_session(made, precision, self.settings.backend) as opened:
                outputs = [opened.infer(batch).given for batch in self.proof_judge.batches]
            names = self.proof_judge.outputs
            return asdict(self.proof_judge.loss([[values[name] for name in names] for values in outputs]))

        return Loss.from_dict(self.store.remember(key, measure))

    def report(
        self,
        problem: NetworkProblem,
        found: Found,
        proof: Loss,
        items: tuple[Item, ...],
        losses: Mapping[str, dict[str, Loss]],
        expected: Mapping[str, Mapping[str, float]],
        times_ms: tuple[float, float],
    ) -> dict[str, Any]:
        """Return everything that was found as JSON takes it."""
        best = found.best
        layers = problem.per_layer(best.choice)
        trials = []
        for trial in found.trials:
            kinds = problem.per_layer(trial.choice)
            trials.append(
                {
                    "origin": trial.origin,
                    "layers": {p: list(kinds.values()).count(p) for p in problem.precisions},
                    **asdict(problem.loss(trial.choice)),
                    "estimate_ms": trial.estimate_ms,
                    "ms": trial.ms,
                    "best": trial.choice == best.choice,
                }
            )
        return {
            "network": {
                "name": self.bundle.spec.name,
                "onnx_sha256": self.bundle.onnx_sha256("fp32"),
                "layers": len(self.layers),
                "macs": sum(layer.macs for layer in self.layers),
            },
            "settings": self.settings.to_dict(),
            "metric": self.metric,
            "samples": {
                name: {"data": images.data, "count": judge.count, "fp32": judge.fp32_mm, **images.about}
                for name, images, judge in (
                    ("search", self.samples.search, self.judge), ("proof", self.samples.proof, self.proof_judge),
                )
            },
            "calibration": self.calibrated.about,
            "speed": {"label": self.speed.label, "predicted": self.speed.predicted, **self.speed.about},
            "best": {
                "counts": {p: list(layers.values()).count(p) for p in problem.precisions},
                "layers": layers,
                "lost": asdict(problem.loss(best.choice)),
                "proof": asdict(proof),
                "ms": times_ms[1],
                "fp32_ms": times_ms[0],
                "times_as_fast": times_ms[0] / times_ms[1],
            },
            "sensitivity": [
                {
                    "name": item.name, "layers": list(item.layers), "macs": item.macs,
                    "alone": {p: asdict(found_losses[item.name]) for p, found_losses in losses.items()},
                    "expected_mm": {p: values[item.name] for p, values in expected.items()},
                }
                for item in items
            ],
            "trials": trials,
            "usage": str(self.usage),
        }  # fmt: skip


def _counts(layers: Mapping[str, str]) -> str:
    kinds = list(layers.values())
    return ", ".join(f"{kinds.count(p)} layers {p}" for p in dict.fromkeys(sorted(kinds)))
