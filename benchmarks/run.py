"""One benchmark run: load, measure accuracy and latency of every precision, write the result."""

from __future__ import annotations

import contextlib
import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from benchmarks import crops, motion
from benchmarks.accuracy import Accuracy, measure_accuracy
from benchmarks.bootstrap import LEVEL, RESAMPLES, SEED, interval, median, p95
from benchmarks.common import (
    REFERENCE,
    chosen_precisions,
    engine_threads,
    engine_words,
    header,
    named,
    processor_of,
    results_folder,
    shown_path,
    when,
)
from benchmarks.details import REPROJECTION_PROTOCOL
from benchmarks.latency import (
    BLOCK,
    REPORTED_PERCENT,
    check_runs,
    joined,
    measure_interleaved,
    ratio,
    round_ratios,
    runs_needed,
    whole_rounds,
)
from benchmarks.people import FRAME_WH, GENERATED, TEST_SEED, Material, load_material, undisturbed
from benchmarks.pictures import png_bytes, worst_entry, worst_picture
from benchmarks.report import KIND, SCHEMA_VERSION, STAGES, latency_entry, pack_samples, write_report
from benchmarks.tables import report_markdown
from metro_edge.backends import BACKENDS, Session, open_session
from metro_edge.bundle import Bundle
from metro_edge.errors import PredictionError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.metrics import AUC_THRESHOLDS_M, PCK_THRESHOLD_M
from metro_edge.preprocess import network_input
from metro_edge.spec import check_precision
from metro_edge.timing import Latency

IN_HALVES = ", half of them before and half after the accuracy is measured, some minutes later"
LATENCY_PROTOCOL = (
    "Network: one normalised image to camera, joints and vertices on the host. Frame to body: crop, normalisation, "
    f"network and placement of one person in a {FRAME_WH[0]}x{FRAME_WH[1]} frame in memory, without decoding and "
    f"detection. Precisions alternate in blocks of {BLOCK} calls{IN_HALVES}; x FP32 is the median over "
    "rounds of the ratio of the blocks' medians, below 1 faster"
)


@dataclass(frozen=True)
class Settings:
    """What to measure, as the command line gives it.

    Attributes:
        bundle: folder or .zip.
        samples: for the accuracy.
        precisions: of the bundle; empty for all. fp32 is added as the reference where the bundle has it.
        backend: one of metro_edge.backends.BACKENDS.
        beside: further ones, on the same processor, that are measured in turns with it.
        threads: CPU threads of one inference; None leaves it to the engine.
        runs: counted calls of each subject.
        data: `generated`, a folder of shards that training wrote or, with `rules`, a data set's files.
        seed: of the frame for the latency, and of generated people.
        output: folder of the results.
        rules: protocol to compare by (training.protocols); empty for generated people.
        smpl: folder of the SMPL files, which the labels of some data sets need.
        motion: measure people who move, too.
        crops: vary the crops of some samples, too.
    """

    bundle: Path
    samples: int = 2000
    precisions: tuple[str, ...] = ()
    backend: str = "onnxruntime"
    beside: tuple[str, ...] = ()
    threads: int | None = None
    runs: int = 100
    data: str = GENERATED
    seed: int = TEST_SEED
    output: Path = Path("benchmarks") / "results"
    rules: str = ""
    smpl: str = ""
    motion: bool = True
    crops: bool = True

    def __post_init__(self) -> None:
        check_runs(self.runs)
        for precision in self.precisions:
            check_precision(precision)
        if self.samples < 1:
            raise UserError(f"the number of samples must be at least 1, got {self.samples}")
        if self.seed < 0:
            raise UserError(f"the seed must be at least 0, got {self.seed}")
        for backend in (self.backend, *self.beside):
            if backend not in BACKENDS:
                raise UserError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        if len({self.backend, *self.beside}) <= len(self.beside):
            raise UserError(f"{self.backend} and {', '.join(self.beside)} name a backend twice")

    @property
    def command(self) -> str:
        """The command that gives the result again, without paths of this machine outside the working folder."""
        words = ["python", "-m", "benchmarks", "run", shown_path(self.bundle), "--samples", str(self.samples)]
        words += ["--precision", *self.precisions] if self.precisions else []
        words += ["--backend", self.backend, "--runs", str(self.runs), "--seed", str(self.seed)]
        words += ["--beside", *self.beside] if self.beside else []
        words += ["--threads", str(self.threads)] if self.threads is not None else []
        words += ["--data", shown_path(Path(self.data))] if self.data != GENERATED else []
        words += ["--protocol", self.rules] if self.rules else []
        words += ["--smpl", shown_path(Path(self.smpl))] if self.smpl else []
        words += [word for word, kept in (("--no-motion", self.motion), ("--no-crops", self.crops)) if not kept]
        return shlex.join(words)


def run(settings: Settings) -> tuple[dict[str, Any], str, tuple[Path, Path]]:
    """Measure and save; returns the report, its Markdown and the paths of both files, which lie beside the pictures.

    Raises:
        UserError: a setting, bundle, data set or output folder that is not usable, or predictions that are none.
            Nothing is left in the output folder then.
    """
    bundle = Bundle.load(settings.bundle)
    precisions = chosen_precisions(bundle, settings.precisions)
    with contextlib.ExitStack() as stack:
        sessions = _open_sessions(stack, bundle, precisions, settings)
        folder = stack.enter_context(results_folder(settings.output))
        material = load_material(
            bundle, settings.data, settings.samples, settings.seed, settings.rules, settings.smpl, settings.crops
        )
        report = measure(settings, bundle, sessions, material)
        pictures = draw_worst(report, bundle, sessions, material)
        markdown = report_markdown(report)
        text = f"# Benchmark of {bundle.spec.name}\n\n{markdown}"
        paths = write_report(folder, _stem(report), report, text, pictures)
    return report, markdown, paths


def measure(settings: Settings, bundle: Bundle, sessions: dict[str, Session], material: Material) -> dict[str, Any]:
    """Measure accuracy, motion and crops, then latency, of open sessions; returns the report (benchmarks.report).

    Raises UserError.
    """
    engines = {precision: session.device for precision, session in sessions.items() if " " not in precision}
    # First, as it refuses what it cannot label.
    head = header(KIND, SCHEMA_VERSION, bundle, settings.backend, settings.threads, engines, settings.command)
    if settings.beside:
        head["device"]["beside"] = _engines_beside(settings, sessions, head["device"])
    first, second = passes(settings.runs)
    timed = partial(measure_latency, sessions, bundle, material, threads=settings.threads)
    latency = timed(first)
    reference = REFERENCE if REFERENCE in sessions else None
    accuracy = measure_accuracy(sessions, material.people, bundle.template, reference, rules=material.rules)
    moving = _measure_motion(sessions, bundle) if settings.motion else (None, {})
    varied = _measure_crops(sessions, bundle, material) if material.frames is not None else (None, {})
    if second:
        later = timed(second)
        latency = {name: joined(measured, later[name]) for name, measured in latency.items()}
    return {
        **head,
        "latency": {
            "frame_wh": list(FRAME_WH),
            "people": 1,
            "batch": 1,
            "runs": settings.runs,
            "block": BLOCK,
            "warmup": next(iter(latency.values())).warmup,
            "protocol": LATENCY_PROTOCOL if second else LATENCY_PROTOCOL.replace(IN_HALVES, ""),
        },
        "accuracy": {
            "data": material.data,
            "seed": material.seed,
            "samples": len(material.people),
            "protocol": _protocol_words(material),
            "truth_sha256": next(iter(accuracy.values())).truth_sha256,
            "joint_set": bundle.spec.joint_set,
            "pck_mm": PCK_THRESHOLD_M * 1000.0,
            "auc_mm": [AUC_THRESHOLDS_M[0] * 1000.0, AUC_THRESHOLDS_M[-1] * 1000.0, len(AUC_THRESHOLDS_M)],
            "reprojection": REPROJECTION_PROTOCOL,
        },
        "motion": moving[0],
        "crops": varied[0],
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "precisions": {
            precision: {
                **_entry(precision, reference, latency, accuracy[precision], settings.runs),
                "worst": worst_entry(accuracy[precision]),
                "motion": moving[1].get(precision),
                "crops": varied[1].get(precision),
            }
            for precision in sessions
        },
    }


def draw_worst(
    report: dict[str, Any], bundle: Bundle, sessions: dict[str, Session], material: Material
) -> dict[str, bytes]:
    """Draw the worst sample of every precision, and name its file in the report; returns name -> PNG."""
    files = {}
    for precision, entry in report["precisions"].items():
        if entry["worst"] is not None:
            name = f"{_stem(report)}-worst-{precision.replace(' ', '-')}.png"
            picture = worst_picture(
                entry["worst"], precision, sessions, material.people, bundle.template, reference=REFERENCE
            )
            entry["worst"]["picture"], files[name] = name, png_bytes(picture)
    return files


def _measure_motion(sessions: dict[str, Session], bundle: Bundle) -> tuple[dict[str, Any], dict[str, Any]]:
    with undisturbed():
        clips = motion.scenes()
    walks, missed = motion.find_walks(sessions, bundle, clips)
    reference = REFERENCE if REFERENCE in sessions else None
    return motion.motion_facts(walks, missed), {p: motion.motion_entry(walks, p, reference) for p in sessions}


def _measure_crops(
    sessions: dict[str, Session], bundle: Bundle, material: Material
) -> tuple[dict[str, Any], dict[str, Any]]:
    frames, samples = material.frames, min(len(material.people), crops.SAMPLES)
    assert frames is not None
    variants = crops.crops_for(bundle.spec, one_person=material.seed is not None)
    with undisturbed():
        errors = crops.measure_crops(sessions, frames, samples, variants, bundle.template, material.rules)
    facts = {
        "samples": samples,
        "crops": [{"name": crop.name, "crop_rule": crop.rule, "box": crop.box} for crop in variants],
        "seed": crops.SEED,
        "protocol": crops.PROTOCOL,
    }
    reference = REFERENCE if REFERENCE in sessions else None
    return facts, {precision: crops.crops_entry(errors, precision, reference) for precision in sessions}


def _protocol_words(material: Material) -> str:
    from training.evaluate import PROTOCOL

    return PROTOCOL if material.rules is None else "; ".join(material.rules.lines())


def passes(runs: int) -> tuple[int, int]:
    """Return the calls before and after the accuracy: whole rounds first, all of them where half would be too few."""
    first = BLOCK * math.ceil(runs / 2 / BLOCK)
    return (first, runs - first) if runs - first >= runs_needed(REPORTED_PERCENT) else (runs, 0)


def measure_latency(
    sessions: dict[str, Session], bundle: Bundle, material: Material, runs: int, threads: int | None
) -> dict[tuple[str, str], Latency]:
    """Time network and frame to body of every precision, interleaved; keys are (precision, stage).

    Threads of one engine go on spinning for a while before those of another, hence more uncounted calls.
    """
    uncounted = 1 if len({session.device for session in sessions.values()}) == 1 else BLOCK // 2
    images = network_input(material.frame, material.box, bundle.spec)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for precision, session in sessions.items():
        estimator = MeshEstimator(bundle, session)
        calls[precision, "network"] = partial(session.infer, images)
        calls[precision, "end_to_end"] = partial(estimator, material.frame, material.box)
    for (precision, _), call in calls.items():
        try:
            call()
        except PredictionError as error:  # which of them?
            raise UserError(f"{precision}: {error}") from None
    before = cv2.getNumThreads()  # rendering sets it to 1 for the whole process
    cv2.setNumThreads(-1 if threads is None else threads)
    try:
        return measure_interleaved(calls, runs, uncounted=uncounted)
    finally:
        cv2.setNumThreads(before)


def _open_sessions(
    stack: contextlib.ExitStack, bundle: Bundle, precisions: Sequence[str], settings: Settings
) -> dict[str, Session]:
    """Return the networks: `int8` of the first backend, `int8 openvino` of another."""
    options = engine_threads(settings.threads)
    return {
        precision if backend == settings.backend else f"{precision} {backend}": stack.enter_context(
            open_session(bundle, precision, backend, **options)
        )
        for backend in (settings.backend, *settings.beside)
        for precision in precisions
    }


def _engines_beside(settings: Settings, sessions: dict[str, Session], device: dict[str, Any]) -> dict[str, str]:
    """Return backend -> engine in words of the further ones; raises UserError for one on another processor."""
    found = {}
    for backend in settings.beside:
        names = {name: session.device for name, session in sessions.items() if name.endswith(f" {backend}")}
        found[backend] = engine_words(names)
        processor, name = processor_of(found[backend])
        if (processor, name) != (device["processor"], device["name"]):
            raise UserError(
                f"{backend} runs on the {processor} {name}, {settings.backend} on the {device['processor']} "
                f"{device['name']}: measure them in runs of their own"
            )
    return found


def _entry(
    precision: str,
    reference: str | None,
    latency: dict[tuple[str, str], Latency],
    accuracy: Accuracy,
    runs: int,
) -> dict[str, Any]:
    stages: dict[str, Any] = {}
    for stage in STAGES:
        measured = latency[precision, stage]
        against = None
        if reference is not None and precision != reference:
            compared = ratio(measured, latency[reference, stage])
            found = interval(round_ratios(measured, latency[reference, stage]), median)
            against = {
                "median": compared.median,
                "low": compared.low,
                "high": compared.high,
                "interval": found and found.to_dict(),
            }
        rounds = whole_rounds(measured)
        found_ms = {"p50_ms": interval(rounds, median), "p95_ms": interval(rounds, p95)}
        stages[stage] = {
            **latency_entry(measured.to_dict(), runs),
            "intervals": {key: found and found.to_dict() for key, found in found_ms.items()},
            "ratio_to_fp32": against,
            "samples_ms": pack_samples(measured.samples_ms),
        }
    return {"latency": stages, "accuracy": accuracy.to_dict()}


def _stem(report: dict[str, Any]) -> str:
    device = report["device"]
    return f"{named(report)}-{device['backend']}-{device['processor'].lower()}-{when(report)}"
