"""One network on several engines, interleaved in one run: what a user would have without metro-edge, and with it.

The result, a JSON object of schema 1. Times are milliseconds. An INTERVAL is null or {`low`, `high`}.

- `schema_version`: 1; `kind`: `metro-edge against`; `created`: UTC, ISO 8601; `command`; `metro_edge`: version.
- `network`: `name`, `weights` (`trained`, or that they are not), `checkpoint_sha256`, `plain_sha256` (of the plain
  export), `onnx_sha256` {precision: hash}, `calibration` (what INT8 was calibrated on).
- `device`: `processor` (`CPU` or `GPU`), `name`, `threads` (of every engine on the CPU).
- `machine`: what metro_edge.machine.describe_machine returns; `peak_memory_mb`: of the whole run.
- `images`: `data` and `count` of the images of the differences; the first of them is timed.
- `latency`: `reference` (name of the subject that ratios are to), `rounds`, `groups`: per group the `subjects` that
  alternate, the reference among them, `block` counted calls in a row and `uncounted` ones before; `protocol`.
- `intervals`: {`level`, `resamples`, `seed`} of the bootstrap.
- `subjects`: name -> {`title`, `ours`, `precision`, `skipped`: null or why; else `device` (engine, version),
  `interleaved`, `group` (number), `latency`: {`p50_ms`, `p95_ms`, `mean_ms`, `min_ms`, `calls`, `warmup`, `intervals`
  {`p50_ms`, `p95_ms`: INTERVAL}}, `ratio`: {`median`, `low`, `high`, `interval`: INTERVAL} of its time to the
  reference's, by rounds of its group, `difference` (benchmarks.subjects.difference), `samples_ms`: counted calls in
  order, packed (benchmarks.report.unpack_samples), null where only a summary is known}.
"""

from __future__ import annotations

import gc
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.against_report import KIND, SCHEMA_VERSION, against_markdown, plot_against
from benchmarks.bootstrap import LEVEL, RESAMPLES, SEED, interval, median, p95
from benchmarks.common import VERSIONS, results_folder, shown_path
from benchmarks.latency import measure_interleaved, ratio, round_ratios, runs_needed, whole_rounds
from benchmarks.networks import Subject, from_bundle, from_preset, noise_images
from benchmarks.people import FRAME_WH, TEST_SEED, undisturbed
from benchmarks.report import pack_samples
from benchmarks.subjects import (
    PROCESSORS,
    REFERENCE,
    Arrays,
    Engine,
    Running,
    UnavailableError,
    difference,
    engines,
    torch_threads,
)
from benchmarks.trtexec import find_trtexec, run_trtexec
from engines.verify import predictions_from_pytorch
from metro_edge import __version__
from metro_edge.backends.cores import check_cores
from metro_edge.backends.gpu import first_gpu
from metro_edge.errors import MissingExtraError, UserError
from metro_edge.files import json_bytes, sha256_of, write_bytes
from metro_edge.machine import cpu_model, describe_machine, peak_memory_mb, usable_cores
from metro_edge.preprocess import network_input
from metro_edge.timing import Latency

IMAGES = 4
ROUNDS = 12
LEAST_ROUNDS = 7  # fewer give no interval, and not the calls for a 95th percentile
BLOCK_S = 0.1  # of counted calls in a row; half as long before, uncounted, while the threads before still spin
LEAST_BLOCK, MOST_BLOCK = 3, 100
LARGE = 200_000_000  # bytes of a graph of which a few engines at a time fit in 8 GB
AT_A_TIME = 3  # of a large network, beside the reference
PROTOCOL = (
    "One image of the network's size on the host to its outputs on the host. All subjects of a group alternate in "
    "blocks, each block after uncounted calls; a ratio is the median over rounds of the ratio of the blocks' medians"
)


@dataclass(frozen=True)
class Settings:
    """What to compare, as the command line gives it.

    Attributes:
        bundle: folder or .zip; None for the shipped one.
        checkpoint: that the bundle was made of; None for the shipped one.
        body: name and place of the network's body, for released checkpoints.
        network: a released architecture, filled with reference weights, instead of bundle and checkpoint.
        processor: cpu or gpu.
        threads: of every engine on the CPU; None for all usable cores.
        rounds: how often all subjects take turns.
        output: folder of the results.
    """

    bundle: Path | None = None
    checkpoint: Path | None = None
    body: tuple[str, str] | None = None
    network: str | None = None
    processor: str = "cpu"
    threads: int | None = None
    rounds: int = ROUNDS
    output: Path = Path("benchmarks") / "results"

    def __post_init__(self) -> None:
        if self.network is not None and (self.bundle or self.checkpoint or self.body):
            raise UserError("--network makes its own bundle: leave out the bundle, --checkpoint and --body")
        if self.processor not in PROCESSORS:
            raise UserError(f"unknown processor {self.processor!r}; known: {', '.join(PROCESSORS)}")
        if self.rounds < LEAST_ROUNDS:
            raise UserError(f"--rounds must be at least {LEAST_ROUNDS}, got {self.rounds}")
        check_cores(self.threads, None)

    @property
    def command(self) -> str:
        """The command that gives the result again."""
        words = ["python", "-m", "benchmarks", "against"]
        words += [shown_path(self.bundle)] if self.bundle else []
        words += ["--checkpoint", shown_path(self.checkpoint)] if self.checkpoint else []
        words += ["--body", f"{self.body[0]}={shown_path(Path(self.body[1]))}"] if self.body else []
        words += ["--network", self.network] if self.network else []
        words += ["--processor", self.processor, "--rounds", str(self.rounds)]
        words += ["--threads", str(self.threads)] if self.threads is not None else []
        return shlex.join(words)


def run(settings: Settings) -> tuple[dict[str, Any], str, list[Path]]:
    """Compare and save `against-NETWORK-PROCESSOR-TIME.json`, `.md` and `.png`; returns report, Markdown and paths.

    Raises:
        UserError: what cannot be used, or an engine whose outputs are not finite. Nothing is saved then.
        MissingExtraError: without matplotlib, PyTorch or ONNX.
    """
    subject = load(settings)
    with results_folder(settings.output) as folder:
        report = measure(settings, subject, images_of(subject))
        time_words = report["created"].replace("-", "").replace(":", "")
        stem = f"against-{report['network']['name']}-{report['device']['processor'].lower()}-{time_words}"
        paths = [folder / f"{stem}{suffix}" for suffix in (".png", ".json", ".md")]
        markdown = against_markdown(report, paths[0].name)
        plot_against(paths[0], report)  # first: without matplotlib nothing is written
        write_bytes(paths[1], json_bytes(report))
        write_bytes(paths[2], markdown.encode())
    return report, markdown, paths


def load(settings: Settings) -> Subject:
    """Return the network, converted where that was not done before."""
    if settings.network is not None:
        return from_preset(settings.network, say=lambda text: print(text, file=sys.stderr))
    return from_bundle(settings.bundle, settings.checkpoint, settings.body)


def images_of(subject: Subject) -> tuple[str, NDArray[np.float32]]:
    """Return what is run, in words, and (IMAGES, 3, S, S) float32: rendered people, or noise for reference weights."""
    spec = subject.bundle.spec
    if not subject.trained:
        return "noise", noise_images(IMAGES, spec.image_size, TEST_SEED)
    try:
        from training.data.generator import GeneratedPeople
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "anny", "train", "make the people to measure on") from None
    with undisturbed():
        people = GeneratedPeople(TEST_SEED, IMAGES, frame_wh=FRAME_WH)
        samples = [people.sample(number) for number in range(IMAGES)]
    crops = [network_input(sample.frame, sample.box, spec) for sample in samples]
    return f"generated people, seed {TEST_SEED}", np.concatenate(crops)


def measure(settings: Settings, subject: Subject, images: tuple[str, NDArray[np.float32]]) -> dict[str, Any]:
    """Open, check and time every engine; returns the report, see the module."""
    threads = settings.threads or usable_cores()
    data, pictures = images
    bundle = subject.bundle
    given = predictions_from_pytorch(subject.model, pictures, bundle.spec, bundle.template).given
    all_engines = engines(subject, settings.processor, threads)
    entries: dict[str, Any] = {engine.name: _head(engine) for engine in all_engines}
    groups = []
    with torch_threads(threads):
        for number, members in enumerate(_grouped(all_engines, subject.plain.stat().st_size)):
            group = _measure_group(members, given, pictures, subject.trained, settings.rounds, number)
            for name, entry in group["entries"].items():
                if "latency" not in entries[name]:  # the reference keeps what it was in its first group
                    entries[name] |= entry
            if group["timed"]:
                groups.append({key: group[key] for key in ("block", "uncounted")} | {"subjects": group["timed"]})
            gc.collect()
    if settings.processor == "gpu":
        entries |= _trtexec_entries(subject, given, pictures, entries[REFERENCE])
    gpu = first_gpu() if settings.processor == "gpu" else None
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "command": settings.command,
        "metro_edge": __version__,
        "network": {
            "name": subject.name,
            "weights": subject.weights,
            "checkpoint_sha256": bundle.passport["checkpoint"]["sha256"],
            "plain_sha256": sha256_of(subject.plain.read_bytes()),
            "onnx_sha256": {precision: bundle.onnx_sha256(precision) for precision in bundle.precisions},
            "calibration": subject.calibration,
        },
        "device": {
            "processor": settings.processor.upper(),
            "name": gpu.name if gpu else cpu_model(),
            "threads": threads,
        },
        "machine": describe_machine((*VERSIONS, "openvino")),
        "peak_memory_mb": peak_memory_mb(),
        "images": {"data": data, "count": len(pictures)},
        "latency": {"reference": REFERENCE, "rounds": settings.rounds, "groups": groups, "protocol": PROTOCOL},
        "intervals": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "subjects": entries,
    }


def _head(engine: Engine) -> dict[str, Any]:
    return {"title": engine.title, "ours": engine.ours, "precision": engine.precision, "skipped": None}


def _grouped(all_engines: Sequence[Engine], size: int) -> list[list[Engine]]:
    """Return what alternates: all at once, or parts with the reference in each for a graph of many bytes."""
    reference, *others = all_engines
    step = AT_A_TIME if size > LARGE else len(others)
    return [[reference, *others[start : start + step]] for start in range(0, len(others), step)]


def _measure_group(
    members: Sequence[Engine],
    given: Mapping[str, NDArray[np.float32]],
    pictures: NDArray[np.float32],
    trained: bool,
    rounds: int,
    number: int,
) -> dict[str, Any]:
    """Return `entries` of the subjects, names of the `timed` ones, `block` and `uncounted`."""
    entries: dict[str, Any] = {}
    running: dict[str, Running] = {}
    with ExitStack() as stack:
        for engine in tqdm(members, desc="engines", unit="engine", leave=False):
            try:
                opened = engine.start(stack)
            except UnavailableError as error:
                if engine.name == REFERENCE:
                    raise UserError(f"the reference {engine.title} cannot run: {error}") from None
                entries[engine.name] = {"skipped": str(error)}
                continue
            found = _outputs(opened, pictures)
            running[engine.name] = opened
            entries[engine.name] = {"device": opened.device, "interleaved": True, "group": number}
            entries[engine.name]["difference"] = difference(found, given, trained)
        calls = {name: partial(opened.infer, pictures[:1]) for name, opened in running.items()}
        block = _block(calls)
        uncounted = (block + 1) // 2
        runs = max(rounds, -(-runs_needed(95) // block)) * block
        latency = measure_interleaved(calls, runs, block, uncounted=uncounted)
    for name, measured in latency.items():
        entries[name] |= _timed(measured, latency[REFERENCE], block)
    return {"entries": entries, "timed": list(latency), "block": block, "uncounted": uncounted}


def _outputs(opened: Running, pictures: NDArray[np.float32]) -> Arrays:
    """Return the outputs of all pictures, one call for each."""
    parts = [
        {name: np.array(values) for name, values in opened.infer(pictures[i : i + 1]).items()}
        for i in range(len(pictures))
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _block(calls: Mapping[str, Any]) -> int:
    """Return how many calls of the fastest subject take BLOCK_S, within limits."""
    seconds = []
    for call in calls.values():
        call()
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    return int(np.clip(np.ceil(BLOCK_S / max(min(seconds), 1e-6)), LEAST_BLOCK, MOST_BLOCK))


def _timed(measured: Latency, reference: Latency, block: int) -> dict[str, Any]:
    rounds = whole_rounds(measured, block)
    found = {"p50_ms": interval(rounds, median), "p95_ms": interval(rounds, p95)}
    summary = {key: measured.to_dict()[key] for key in ("p50_ms", "p95_ms", "mean_ms", "min_ms", "calls", "warmup")}
    compared = ratio(measured, reference, block)
    ends = interval(round_ratios(measured, reference, block), median)
    return {
        "latency": {**summary, "intervals": {key: value and value.to_dict() for key, value in found.items()}},
        "ratio": {
            "median": compared.median,
            "low": compared.low,
            "high": compared.high,
            "interval": ends and ends.to_dict(),
        },
        "samples_ms": pack_samples(measured.samples_ms),
    }


def _trtexec_entries(
    subject: Subject,
    given: Mapping[str, NDArray[np.float32]],
    pictures: NDArray[np.float32],
    reference: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what trtexec makes of the plain export, in FP32 and FP16; timed by itself, so without interval."""
    entries = {}
    for name, title, options in (
        ("trtexec-plain", "plain ONNX export, TensorRT by trtexec", ()),
        ("trtexec-plain-fp16", "plain ONNX export, TensorRT by trtexec --fp16", ("--fp16",)),
    ):
        entry: dict[str, Any] = {
            "title": title, "ours": False, "precision": "fp16" if options else "fp32", "skipped": None
        }  # fmt: skip
        entries[name] = entry
        program = find_trtexec()
        if program is None:
            entry["skipped"] = "no trtexec on PATH or in /usr/src/tensorrt/bin"
            continue
        try:
            log, outputs = run_trtexec(program, subject.plain, pictures[:1], options)
        except UserError as error:
            entry["skipped"] = str(error)
            continue
        first = {key: values[:1] for key, values in given.items()}
        times = log.times_ms["Latency"]
        entry |= {
            "device": f"tensorrt {log.version} by trtexec",
            "interleaved": False,
            "group": None,
            "difference": difference(outputs, first, subject.trained),
            "latency": {
                "p50_ms": times["median"], "p95_ms": times.get("p95"), "mean_ms": times["mean"],
                "min_ms": times["min"], "calls": None, "warmup": None, "intervals": {"p50_ms": None, "p95_ms": None},
            },
            "ratio": {
                "median": times["median"] / reference["latency"]["p50_ms"],
                "low": None, "high": None, "interval": None,
            },
            "samples_ms": None,
        }  # fmt: skip
    return entries
