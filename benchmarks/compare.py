"""Two saved results side by side: what changed beyond noise."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.bootstrap import LEVEL, Interval, interval
from benchmarks.markdown import markdown_table
from benchmarks.report import ACCURACY_KEYS, LATENCY_KEYS, LOSSES, SHARES, STAGES, unpack_samples
from benchmarks.tables import SHOWN_DIGITS
from metro_edge.errors import UserError

Report = dict[str, Any]
# What two results must have in common, by the word that permits a difference.
KINDS = ("data", "samples", "seed", "protocol", "machine")
CHANGED, NOISE, UNKNOWN = "changed", "within noise", "not judged"
HEADER = ("figure", "A", "B", "change", "interval of the change", "verdict")
STAGE_NAMES = {"network": "network", "end_to_end": "frame to body"}


@dataclass(frozen=True)
class Change:
    """One figure of both results.

    Attributes:
        name: with precision and unit.
        a, b: the figures; None where a result has too few samples for it.
        paired: interval of b - a where both measured the same samples, else None.
        verdict: CHANGED, NOISE or UNKNOWN.
    """

    name: str
    a: float | None
    b: float | None
    paired: Interval | None
    verdict: str


def compare(a: Report, b: Report, allowed: Collection[str] = ()) -> list[Change]:
    """Hold the figures of two results (benchmarks.report) against each other, for the precisions of both.

    Errors of the same samples are paired: changed when the interval of the mean difference leaves out 0. All else
    is changed when the intervals of both have no value in common.

    Raises:
        UserError: no precision in common, or measurements that are not comparable, unless their kind is `allowed`.
    """
    if unknown := set(allowed) - set(KINDS):
        raise UserError(f"unknown difference {', '.join(sorted(unknown))}; known: {', '.join(KINDS)}")
    found = {kind: what for kind, what in differences(a, b).items() if kind not in allowed}
    if found:
        raise UserError(
            f"these results are not comparable: {'; '.join(found.values())}. To compare them all the same: "
            + " ".join(f"--allow {kind}" for kind in found)
        )
    common = [precision for precision in a["precisions"] if precision in b["precisions"]]
    if not common:
        raise UserError(
            f"no precision in common: A has {', '.join(a['precisions'])}, B has {', '.join(b['precisions'])}"
        )
    same = same_samples(a, b)
    return [change for p in common for change in _changes(p, a["precisions"][p], b["precisions"][p], same)]


def differences(a: Report, b: Report) -> dict[str, str]:
    """Return kind (KINDS) -> what differs, in words; empty for comparable measurements."""
    accuracy, latency = (a["accuracy"], b["accuracy"]), (a["latency"], b["latency"])
    facts: dict[str, list[tuple[str, Any, Any]]] = {
        "seed": [("the seed of the samples", *(one.get("seed") for one in accuracy))],
        "samples": [("the number of samples", *(one["samples"] for one in accuracy))],
        "protocol": [
            ("the protocol of the accuracy", *(one["protocol"] for one in accuracy)),
            ("the protocol of the latency", *(one["protocol"] for one in latency)),
        ],
        "machine": [
            (f"the machine's {key}", *(report["machine"][key] for report in (a, b)))
            for key in ("cpu", "cores", "architecture")
        ],
    }
    facts["protocol"] += [(key, *(one.get(key) for one in latency)) for key in ("frame_wh", "people", "batch", "block")]
    facts["machine"] += [
        (f"the device's {key}", *(report["device"][key] for report in (a, b))) for key in ("processor", "name")
    ]
    found = {}
    for kind, pairs in facts.items():
        if words := [f"{what} is {x} and {y}" for what, x, y in pairs if x != y]:
            found[kind] = ", ".join(words)
    # One seed and another count, or seed, give other meshes by themselves.
    if not {"seed", "samples"} & set(found) and (data := _other_data(*accuracy)):
        found["data"] = data
    return {kind: found[kind] for kind in KINDS if kind in found}


def same_samples(a: Report, b: Report) -> bool:
    """Return whether both results keep the errors of the very same samples, in the same order, by one protocol."""
    hashes = [report["accuracy"].get("truth_sha256") for report in (a, b)]
    return hashes[0] is not None and hashes[0] == hashes[1] and a["accuracy"]["protocol"] == b["accuracy"]["protocol"]


def compare_markdown(a: Report, b: Report, changes: list[Change], allowed: Collection[str] = ()) -> str:
    """Return what was compared, the table of all figures, and in one sentence what changed."""
    lines = [f"- A: {_about(a)}", f"- B: {_about(b)}"]
    lines += [f"- Not comparable, as permitted: {what}." for k, what in differences(a, b).items() if k in allowed]
    lines += [f"- {what}: {x} and {y}." for what, x, y in _noted(a, b) if x != y]
    for name, report, other in (("A", a, b), ("B", b, a)):
        if alone := [p for p in report["precisions"] if p not in other["precisions"]]:
            lines.append(f"- Only {name} has {', '.join(alone)}.")
    rows = [_row(change) for change in changes]
    return "\n\n".join(["\n".join(lines), markdown_table(HEADER, rows, ("figure", "verdict")), verdict(changes)]) + "\n"


def verdict(changes: list[Change]) -> str:
    """Return in words how many figures changed, which, and how many would by chance."""
    changed = [change.name for change in changes if change.verdict == CHANGED]
    judged = sum(change.verdict != UNKNOWN for change in changes)
    text = f"Nothing of {judged} figures changed beyond noise."
    if changed:
        text = f"{len(changed)} of {judged} figures changed beyond noise: {'; '.join(changed)}."
        text += f" At {LEVEL:.0%} each, up to about {judged * (1 - LEVEL):.0f} of {judged} would by chance."
    if unknown := len(changes) - judged:
        text += f" {unknown} not judged: too few samples or rounds for an interval, or a result of before intervals."
    return text + " Times in ms also change with whatever else the machine does between two runs; ratios less."


def _other_data(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    hashes = [one.get("truth_sha256") for one in (a, b)]
    if None not in hashes:
        return None if hashes[0] == hashes[1] else "the true meshes of the samples are others"
    # Before hashes were kept, the words are all there is to tell by.
    return None if a["data"] == b["data"] else f"the data set is {a['data']!r} and {b['data']!r}"


Figure = tuple[float | None, dict[str, float] | None]


def _changes(precision: str, a: dict[str, Any], b: dict[str, Any], same: bool) -> Iterator[Change]:
    x, y = a["accuracy"], b["accuracy"]
    for key in ACCURACY_KEYS:
        name = key.removesuffix("_mm")
        paired = None
        if same and x[key] is not None and y[key] is not None:
            before, after = (unpack_samples(one["per_sample_mm"][name]) for one in (x, y))
            paired = interval(after - before)
        yield _change(f"{precision} {_metric(name)} mm", _of(x, key), _of(y, key), paired)
    yield from _details(precision, a, b)
    x, y = x["against_fp32"], y["against_fp32"]
    for loss in LOSSES if x and y else ():
        for key, word in ((f"{loss}_mm", "mean"), (f"{loss}_p95_mm", "p95")):
            yield _change(f"{precision} {_metric(loss)}, {word} mm", _of(x, key), _of(y, key))
    for stage in STAGES:
        x, y = a["latency"][stage], b["latency"][stage]
        for key in LATENCY_KEYS:
            yield _change(f"{precision} {STAGE_NAMES[stage]} {key[:3]} ms", _of(x, key), _of(y, key))
        if x["ratio_to_fp32"] and y["ratio_to_fp32"]:
            yield _change(f"{precision} {STAGE_NAMES[stage]} x FP32", _ratio(x), _ratio(y))


def _details(precision: str, a: dict[str, Any], b: dict[str, Any]) -> Iterator[Change]:
    """Yield the figures that schema 3 added, where both results have them."""
    tables = [[entry["accuracy"].get("shares"), entry["accuracy"].get("reprojection"), entry.get("motion")]
              for entry in (a, b)]  # fmt: skip
    shares, places, motion = zip(*tables, strict=True)
    named = [(shares, key, f"{key}_interval", key.upper().replace("_", "-")) for key in SHARES]
    named += [
        (places, "px", "px_interval", "distance on the picture, px"),
        (places, "box_share", "box_share_interval", "distance on the picture, share of the box"),
        (motion, "acceleration_error_mm", "acceleration_error_interval", "acceleration error mm/frame^2"),
        (motion, "jitter_mm", "jitter_interval", "jitter mm/frame^3"),
        (motion, "jitter_gain", "jitter_gain_interval", "jitter gain from FP32"),
    ]
    for (x, y), key, around, name in named:
        if x and y and not (x[key] is None and y[key] is None):
            yield _change(f"{precision} {name}", (x[key], x[around]), (y[key], y[around]))


def _change(name: str, a: Figure, b: Figure, paired: Interval | None = None) -> Change:
    (x, around_x), (y, around_y) = a, b
    if paired is not None:
        word = NOISE if paired.contains(0.0) else CHANGED
    elif x is None or y is None or around_x is None or around_y is None:
        word = UNKNOWN
    else:
        word = NOISE if Interval(**around_x).overlaps(Interval(**around_y)) else CHANGED
    return Change(name, x, y, paired, word)


def _of(entry: dict[str, Any], key: str) -> Figure:
    return entry.get(key), entry.get("intervals", {}).get(key)


def _ratio(stage: dict[str, Any]) -> Figure:
    return stage["ratio_to_fp32"]["median"], stage["ratio_to_fp32"].get("interval")


def _metric(name: str) -> str:
    if name == "moved":
        return "moved from FP32"
    metric = name.removesuffix("_change").upper().replace("_", "-")
    return f"{metric} change from FP32" if name.endswith("_change") else metric


def _about(report: Report) -> str:
    device, accuracy = report["device"], report["accuracy"]
    return (
        f"{report['bundle']['name']} on {device['processor']}: {device['name']}, {report['created']}, "
        f"{accuracy['samples']} samples, {accuracy['data']}, {report['latency']['runs']} calls"
    )


def _noted(a: Report, b: Report) -> Iterator[tuple[str, Any, Any]]:
    """Yield what may well differ between two results, as it is what one compares."""
    for key in ("engine", "threads"):
        yield f"The {key} differs", a["device"][key], b["device"][key]
    yield "The calls of each subject differ", a["latency"]["runs"], b["latency"]["runs"]
    for precision in a["bundle"]["onnx_sha256"]:
        x, y = (report["bundle"]["onnx_sha256"].get(precision) for report in (a, b))
        if x and y:
            yield f"The {precision} network differs", x[:SHOWN_DIGITS], y[:SHOWN_DIGITS]


def _row(change: Change) -> list[str]:
    delta = None if change.a is None or change.b is None else change.b - change.a
    around = f"{change.paired.low:+.3f} to {change.paired.high:+.3f}, paired" if change.paired else "-"
    cells = ["-" if value is None else f"{value:.3f}" for value in (change.a, change.b)]
    return [change.name, *cells, "-" if delta is None else f"{delta + 0.0:+.3f}", around, change.verdict]
