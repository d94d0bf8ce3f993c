"""One benchmark run: load, measure accuracy and latency of every precision, write the result."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import cv2
from numpy.typing import NDArray

from benchmarks.accuracy import Accuracy, People, measure_accuracy
from benchmarks.bootstrap import LEVEL, RESAMPLES, SEED, interval, median, p95
from benchmarks.latency import BLOCK, check_runs, measure_interleaved, ratio, round_ratios, whole_rounds
from benchmarks.report import KIND, SCHEMA_VERSION, STAGES, latency_entry, write_report
from benchmarks.tables import report_markdown
from metro_edge import __version__
from metro_edge.backends import BACKENDS, Session, open_session
from metro_edge.backends.gpu import first_gpu
from metro_edge.bundle import Bundle
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.estimator import MeshEstimator
from metro_edge.files import output_folder
from metro_edge.machine import LIBRARIES, cpu_model, describe_machine, usable_cores
from metro_edge.preprocess import Frame, network_input
from metro_edge.spec import check_precision
from metro_edge.timing import Latency

REFERENCE = "fp32"
FRAME_WH = (640, 480)
GENERATED = "generated"
GENERATED_FOLDER = Path("runs") / "people"  # where training keeps its samples, too
# Training draws from seed 1 and chooses its checkpoint by seed 2 (training/configs).
TEST_SEED = 3
MAX_WORKERS = 4
VERSIONS = (*LIBRARIES, "onnx", "torch", "anny")
LATENCY_PROTOCOL = (
    "Network: one normalised image to camera, joints and vertices on the host. Frame to body: crop, normalisation, "
    f"network and placement of one person in a {FRAME_WH[0]}x{FRAME_WH[1]} frame in memory, without decoding and "
    f"detection. Precisions alternate in blocks of {BLOCK} calls; x FP32 is the median over rounds of the ratio of the "
    "blocks' medians, below 1 faster"
)


@dataclass(frozen=True)
class Settings:
    """What to measure, as the command line gives it.

    Attributes:
        bundle: folder or .zip.
        samples: for the accuracy.
        precisions: of the bundle; empty for all. fp32 is added as the reference where the bundle has it.
        backend: one of metro_edge.backends.BACKENDS.
        threads: CPU threads of one inference; None leaves it to the engine.
        runs: counted calls of each subject.
        data: `generated`, or a folder of shards that training wrote.
        seed: of the frame for the latency, and of generated people.
        output: folder of the results.
    """

    bundle: Path
    samples: int = 2000
    precisions: tuple[str, ...] = ()
    backend: str = "onnxruntime"
    threads: int | None = None
    runs: int = 100
    data: str = GENERATED
    seed: int = TEST_SEED
    output: Path = Path("benchmarks") / "results"

    def __post_init__(self) -> None:
        check_runs(self.runs)
        for precision in self.precisions:
            check_precision(precision)
        if self.samples < 1:
            raise UserError(f"the number of samples must be at least 1, got {self.samples}")
        if self.seed < 0:
            raise UserError(f"the seed must be at least 0, got {self.seed}")
        if self.backend not in BACKENDS:
            raise UserError(f"unknown backend {self.backend!r}; known: {', '.join(BACKENDS)}")

    @property
    def command(self) -> str:
        """The command that gives the result again, without paths of this machine outside the working folder."""
        words = ["python", "-m", "benchmarks", "run", _shown(self.bundle), "--samples", str(self.samples)]
        words += ["--precision", *self.precisions] if self.precisions else []
        words += ["--backend", self.backend, "--runs", str(self.runs), "--seed", str(self.seed)]
        words += ["--threads", str(self.threads)] if self.threads is not None else []
        words += ["--data", _shown(Path(self.data))] if self.data != GENERATED else []
        return shlex.join(words)


@dataclass(frozen=True, eq=False)
class Material:
    """What is measured on.

    Attributes:
        people: samples with truth, for the accuracy; `data` and `seed` say which.
        frame, box: (480, 640, 3) uint8 BGR with one person and the box (4,) px, for the latency.
    """

    people: People
    data: str
    seed: int | None
    frame: Frame
    box: NDArray[Any]


def run(settings: Settings) -> tuple[dict[str, Any], str, tuple[Path, Path]]:
    """Measure and save; returns the report, its Markdown and the paths of both files.

    Raises:
        UserError: a setting, bundle, data set or output folder that is not usable, or predictions that are none.
            Nothing is left in the output folder then.
    """
    bundle = Bundle.load(settings.bundle)
    precisions = chosen_precisions(bundle, settings.precisions)
    with contextlib.ExitStack() as stack:
        sessions = _open_sessions(stack, bundle, precisions, settings)
        folder = stack.enter_context(_results_folder(settings.output))
        report = measure(settings, bundle, sessions, load_material(settings, bundle))
        markdown = report_markdown(report)
        paths = write_report(folder, _stem(report), report, f"# Benchmark of {bundle.spec.name}\n\n{markdown}")
    return report, markdown, paths


def chosen_precisions(bundle: Bundle, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return what is measured, the reference first; raises UserError for one that the bundle lacks."""
    for precision in wanted:
        if precision not in bundle.precisions:
            raise UserError(f"bundle {bundle.path} has no {precision} network; it has {', '.join(bundle.precisions)}")
    chosen = set(wanted or bundle.precisions) | {REFERENCE}
    return tuple(p for p in bundle.precisions if p in chosen)


def measure(settings: Settings, bundle: Bundle, sessions: dict[str, Session], material: Material) -> dict[str, Any]:
    """Measure accuracy, then latency, of open sessions; returns the report (benchmarks.report). Raises UserError."""
    from training.evaluate import PROTOCOL

    engines = {session.device for session in sessions.values()}
    if len(engines) != 1:
        raise UserError(f"the precisions run on different engines: {', '.join(sorted(engines))}")
    engine = engines.pop()
    processor, name = processor_of(engine)
    reference = REFERENCE if REFERENCE in sessions else None
    accuracy = measure_accuracy(sessions, material.people, bundle.template, reference)
    latency = measure_latency(sessions, bundle, material, settings.runs, settings.threads)
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": settings.command,
        "metro_edge": __version__,
        "bundle": {
            "name": bundle.spec.name,
            "checkpoint": bundle.passport["checkpoint"],
            "onnx_sha256": {precision: bundle.onnx_sha256(precision) for precision in sessions},
        },
        "device": {
            "processor": processor,
            "name": name,
            "backend": settings.backend,
            "engine": engine,
            "threads": settings.threads,
        },
        "machine": describe_machine(VERSIONS),
        "latency": {
            "frame_wh": list(FRAME_WH),
            "people": 1,
            "batch": 1,
            "runs": settings.runs,
            "block": BLOCK,
            "warmup": next(iter(latency.values())).warmup,
            "protocol": LATENCY_PROTOCOL,
        },
        "accuracy": {
            "data": material.data,
            "seed": material.seed,
            "samples": len(material.people),
            "protocol": PROTOCOL,
            "truth_sha256": next(iter(accuracy.values())).truth_sha256,
        },
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "precisions": {p: _entry(p, reference, latency, accuracy[p], settings.runs) for p in sessions},
    }


def measure_latency(
    sessions: dict[str, Session], bundle: Bundle, material: Material, runs: int, threads: int | None
) -> dict[tuple[str, str], Latency]:
    """Time network and frame to body of every precision, interleaved; keys are (precision, stage)."""
    images = network_input(material.frame, material.box, bundle.spec)
    calls: dict[tuple[str, str], Callable[[], object]] = {}
    for precision, session in sessions.items():
        estimator = MeshEstimator(bundle, session)
        calls[precision, "network"] = partial(session.infer, images)
        calls[precision, "end_to_end"] = partial(estimator, material.frame, material.box)
    before = cv2.getNumThreads()  # rendering sets it to 1 for the whole process
    cv2.setNumThreads(-1 if threads is None else threads)
    try:
        return measure_interleaved(calls, runs)
    finally:
        cv2.setNumThreads(before)


def processor_of(engine: str) -> tuple[str, str]:
    """Return `CPU` or `GPU` and its name for an engine as sessions describe it.

    Raises UserError when it is not known: a latency without its processor is never printed.
    """
    if "CPUExecutionProvider" in engine:
        return "CPU", cpu_model()
    gpu = first_gpu()
    if gpu is not None and any(word in engine.lower() for word in ("cuda", "tensorrt")):
        return "GPU", gpu.name
    raise UserError(f"cannot tell which processor {engine!r} runs on, so its latency cannot be labelled")


def load_material(settings: Settings, bundle: Bundle) -> Material:
    """Render, or read from shards, what is measured on; raises UserError, or MissingExtraError without `train`."""
    try:
        from training.data.generator import GeneratedPeople
        from training.data.shards import ShardedPeople, people_shards
        from training.data.storage import SHARD_SIZE
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train", "make the people to measure on") from None
    with _undisturbed():
        if settings.data == GENERATED:
            check_held_out(bundle, settings.seed)
            # A worker writes whole shards and takes seconds to start.
            workers = min(usable_cores(), MAX_WORKERS, -(-settings.samples // SHARD_SIZE))
            folder = people_shards(
                GENERATED_FOLDER, bundle.spec, seed=settings.seed, count=settings.samples, workers=workers
            )
        else:
            folder = Path(settings.data)
        people = ShardedPeople(folder, bundle.spec, train=False).first(settings.samples)
        check_held_out(bundle, people.manifest.seed)
        sample = GeneratedPeople(settings.seed, 1, frame_wh=FRAME_WH).sample(0)
    seed = people.manifest.seed
    data = f"rendered with seed {seed}, cached as for training"
    if settings.data != GENERATED:
        data += f" in {folder.name}"
    return Material(people, data, seed, sample.frame, sample.box)


# What of a passport's parts names the seed of generated people, * standing for any name.
_SEEDS = (
    ("training", "training", "train_seed"),
    ("calibration", "calibration", "seed"),
    ("search of precisions", "quantization", "*", "samples", "*", "seed"),
    ("calibration", "quantization", "*", "calibration", "seed"),
)


def _values(entry: Any, keys: Sequence[str]) -> list[Any]:
    """Return what lies under a path of keys."""
    if not keys:
        return [entry]
    if not isinstance(entry, dict):
        return []
    found = entry.values() if keys[0] == "*" else [entry[keys[0]]] if keys[0] in entry else []
    return [value for one in found for value in _values(one, keys[1:])]


def check_held_out(bundle: Bundle, seed: int) -> None:
    """Raise UserError when the passport says that training, calibration or a search saw people of `seed`."""
    for part, *keys in _SEEDS:
        if seed in _values(bundle.passport, keys):
            raise UserError(
                f"people of seed {seed} served the {part} of this bundle, so errors on them would flatter: "
                "take another seed"
            )


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Undo what rendering does to the process: it prints to stdout, where the table goes, and limits OpenCV."""
    threads = cv2.getNumThreads()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        cv2.setNumThreads(threads)


def _open_sessions(
    stack: contextlib.ExitStack, bundle: Bundle, precisions: Sequence[str], settings: Settings
) -> dict[str, Session]:
    options = {} if settings.threads is None else {"threads": settings.threads}
    return {
        precision: stack.enter_context(open_session(bundle, precision, settings.backend, **options))
        for precision in precisions
    }


@contextlib.contextmanager
def _results_folder(path: Path) -> Iterator[Path]:
    """Make the folder before the minutes of measuring; folders that were made for nothing are removed again."""
    made = [p for p in (path, *path.parents) if not p.exists()]
    folder = output_folder(path)
    try:
        yield folder
    except BaseException:
        for empty in made:
            with contextlib.suppress(OSError):
                empty.rmdir()
        raise


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
        }
    return {"latency": stages, "accuracy": accuracy.to_dict()}


def _stem(report: dict[str, Any]) -> str:
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in report["bundle"]["name"]) or "bundle"
    time = report["created"].replace("-", "").replace(":", "")
    device = report["device"]
    return f"{name}-{device['backend']}-{device['processor'].lower()}-{time}"


def _shown(path: Path) -> str:
    """Return a path relative to the working folder, or its name alone when it lies elsewhere."""
    with contextlib.suppress(ValueError):
        return path.resolve().relative_to(Path.cwd()).as_posix()
    return path.name
