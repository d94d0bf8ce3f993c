"""What a plan was made from, with and for: its sidecar `PLAN.json`, and whether it may run here."""

from __future__ import annotations

import json
import os
import platform as system
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metro_edge import machine
from metro_edge.backends.gpu import Gpu
from metro_edge.errors import UserError
from metro_edge.files import json_bytes, kind_of_path, reason, sha256_of
from metro_edge.plans.options import BatchProfile, BuildOptions
from metro_edge.plans.versions import ANY_SYSTEM, FP8_CAPABILITY, Features, takes_plans_of, version_of

if TYPE_CHECKING:
    from metro_edge.bundle import Bundle

SCHEMA_VERSION = 3
_TEXTS = ("onnx_sha256", "precision", "library", "library_version", "platform", "plan_sha256", "onnx_name")


class PlanMismatchError(UserError):
    """A plan that is damaged, or made from, with or for something else."""


def platform_name(library: str = "tensorrt") -> str:
    """Return operating system and processor, such as `linux-x86_64`; `any-x86_64` where plans run on every system."""
    machine_name = system.machine().lower().replace("amd64", "x86_64")
    return f"{'any' if library in ANY_SYSTEM else system.system().lower()}-{machine_name}"


@dataclass(frozen=True)
class PlanIdentity:
    """All that a plan depends on; two builds with the same identity are interchangeable.

    Attributes:
        onnx_sha256: hash of the ONNX graph.
        precision: fp32, fp16, int8 or fp8, as found in the graph.
        library, library_version: `tensorrt` or `tensorrt_rtx`, and its version.
        platform: operating system and processor, such as `linux-x86_64`, see platform_name.
        gpu: name of the GPU that the plan was built on, None where none took part.
        power_mode: of the Jetson that its kernels were timed on, such as `MAXN`; else None.
        compute_capabilities: where it runs: `8.7` is that one, `12.0+` that one and every newer one.
        profiles: ranges of batches.
        settings: what else was asked for, see BuildOptions.settings.
    """

    onnx_sha256: str
    precision: str
    library: str
    library_version: str
    platform: str
    gpu: str | None
    power_mode: str | None
    compute_capabilities: tuple[str, ...]
    profiles: tuple[BatchProfile, ...]
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """Hexadecimal SHA-256 of it all."""
        return sha256_of(json.dumps(asdict(PlanIdentity.of(self)), sort_keys=True).encode())

    @staticmethod
    def of(other: PlanIdentity) -> PlanIdentity:
        """Return the identity alone of a PlanInfo."""
        return PlanIdentity(**{part.name: getattr(other, part.name) for part in fields(PlanIdentity)})


def identity_of(
    has: Features,
    onnx_sha256: str,
    precision: str,
    options: BuildOptions,
    gpu: Gpu | None,
    *,
    power_mode: str | None = None,
    platform: str | None = None,
) -> PlanIdentity:
    """Return the identity of the plan that a library builds for `gpu`, or ahead of time.

    Args:
        has: of the library.
        onnx_sha256, precision, options: of the build.
        gpu: that is there, None without.
        power_mode: that kernels are timed in, see metro_edge.machine.power_mode; those built ahead are not timed.
        platform: default this.
    """
    if has.capabilities:
        gpu_name = None
        targets = options.capabilities or _portable(has.capabilities, FP8_CAPABILITY if precision == "fp8" else (8, 0))
    else:
        gpu_name = gpu.name if gpu else None
        targets = (gpu.compute_capability,) if gpu else ()
        if options.compatibility == "ampere+":
            targets = ("8.0+",)
    return PlanIdentity(
        onnx_sha256=onnx_sha256,
        precision=precision,
        library=has.library,
        library_version=has.version,
        platform=platform or platform_name(has.library),
        gpu=gpu_name,
        power_mode=None if has.capabilities else power_mode,
        compute_capabilities=targets,
        profiles=options.profiles,
        settings=options.settings(),
    )


def _portable(known: tuple[str, ...], oldest: tuple[int, int]) -> tuple[str, ...]:
    """Return where a plan runs that was built for no GPU in particular: the newest generation stands for later ones.

    TensorRT-RTX 1.7.1 on an H200 (9.0) refused it, as one of "8.0 8.6 8.9 12.0 12.1 >12.0": so not of 8.7 either.
    """
    newest = max(version_of(name) for name in known)[0]
    older = [name for name in known if oldest <= version_of(name) < (newest, 0)]
    return (*older, f"{newest}.0+")


@dataclass(frozen=True)
class PlanInfo(PlanIdentity):
    """The text of `<plan>.json`.

    Attributes:
        plan_sha256, plan_bytes: of the plan file.
        onnx_name: file name of the ONNX graph.
        machine: what built it: `metro_edge` (version), `cpu`, `python`.
        origin: what the bundle's passport says of the graph, see origin_of; empty where it came from no bundle.
        schema_version: of this file.
    """

    plan_sha256: str
    plan_bytes: int
    onnx_name: str
    machine: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def max_batch(self) -> int:
        """The largest batch that any of its profiles takes."""
        return max(profile.largest for profile in self.profiles)

    @staticmethod
    def path_of(plan_path: Path) -> Path:
        """Return the path of the sidecar of a plan: `model.plan` has `model.plan.json`."""
        return plan_path.with_name(plan_path.name + ".json")

    def to_bytes(self) -> bytes:
        """Return the content of the sidecar."""
        return json_bytes(asdict(self))

    @classmethod
    def load(cls, plan_path: str | os.PathLike[str]) -> PlanInfo:
        """Read the sidecar of a plan and check the plan against it.

        Raises:
            PlanMismatchError: plan or sidecar is missing or of another version, or they do not belong together.
        """
        plan_path = Path(plan_path)
        sidecar = cls.path_of(plan_path)
        for path in (plan_path, sidecar):
            if (kind := kind_of_path(path)) != "file":
                found = f"is a {kind}, no file" if kind == "folder" else "is no file" if kind else "does not exist"
                raise PlanMismatchError(f"{path} {found}; build the plan with `metro-edge build`")
        try:
            info = cls._from_json(json.loads(sidecar.read_text(encoding="utf-8")))
            info.to_bytes()  # what cannot be written, such as values nested too deeply, was no sidecar
            content = plan_path.read_bytes()
        except OSError as error:
            raise PlanMismatchError(f"{plan_path} cannot be read: {reason(error)}") from None
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise PlanMismatchError(
                f"{sidecar} is not the description of a plan ({error}); build the plan again"
            ) from None
        if sha256_of(content) != info.plan_sha256:
            raise PlanMismatchError(f"{plan_path} is not the plan that {sidecar.name} describes; build the plan again")
        return info

    @classmethod
    def _from_json(cls, values: dict[str, Any]) -> PlanInfo:
        if values.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"schema version {values.get('schema_version')!r}, not {SCHEMA_VERSION}")
        if values.keys() != {part.name for part in fields(cls)}:
            raise ValueError("other fields than a plan's description has")
        if not all(isinstance(values[name], dict) for name in ("settings", "machine", "origin")):
            raise ValueError("settings, machine or origin are no object")
        if not all(isinstance(values[name], str) for name in _TEXTS):
            raise ValueError(f"one of {', '.join(_TEXTS)} is no text")
        if not all(isinstance(values[name], str | None) for name in ("gpu", "power_mode")):
            raise ValueError("gpu or power mode are no text")
        profiles = tuple(BatchProfile(*map(int, profile)) for profile in values["profiles"])
        BuildOptions(profiles=profiles)  # raises for those that no plan has
        capabilities = tuple(map(str, values["compute_capabilities"]))
        return cls(**{**values, "profiles": profiles, "compute_capabilities": capabilities})


def origin_of(bundle: Bundle, precision: str) -> dict[str, Any]:
    """Return what a bundle's passport says of a graph.

    `bundle`, its name; `checkpoint`, name and SHA-256; `calibration`, data, method and SHA-256 of the images, None
    where nothing was calibrated; `measured`, data, samples, protocol and the millimetres of this precision.
    """
    passport = bundle.passport
    measured = passport.get("accuracy") or passport.get("verification") or {}
    about = {key: measured[key] for key in ("data", "samples", "protocol") if key in measured}
    return {
        "bundle": bundle.spec.name,
        "checkpoint": passport["checkpoint"],
        "calibration": passport.get("calibration") if precision in ("int8", "fp8") else None,
        "measured": about | measured.get("precisions", {}).get(precision, {}),
    }


def describe_builder() -> dict[str, Any]:
    """Return what a sidecar says of the machine; nothing that names the computer or its user."""
    from metro_edge import __version__

    described = machine.describe_machine(())
    return {
        "metro_edge": __version__,
        "cpu": described["cpu"],
        "python": described["python"],
    }


def difference(wanted: PlanIdentity, found: PlanIdentity) -> str | None:
    """Return how `found` differs from `wanted`, in words; None when they are the same."""
    words = {
        "onnx_sha256": "ONNX graph with SHA-256",
        "precision": "precision",
        "library": "library",
        "library_version": f"{wanted.library} version",
        "platform": "platform",
        "gpu": "GPU",
        "power_mode": "power mode",
        "compute_capabilities": "compute capability",
        "profiles": "batches",
        "settings": "settings",
    }
    for name, word in words.items():
        here, there = getattr(wanted, name), getattr(found, name)
        if here != there:
            return f"{word} {_text(there)}, not {_text(here)}"
    return None


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(part) for part in value) or "unknown"
    if isinstance(value, dict):
        return ", ".join(f"{name}={part}" for name, part in value.items()) or "none"
    return "unknown" if value is None else str(value)


def check_runs_here(
    path: Path,
    info: PlanInfo,
    *,
    onnx_sha256: str | None,
    library: str,
    library_version: str,
    gpu: Gpu,
    power_mode: str | None = None,
) -> None:
    """Raise PlanMismatchError, with the reason, unless a plan runs on this GPU with this library.

    Args:
        path, info: the plan and its sidecar.
        onnx_sha256: of the graph that it must come from; None: any.
        library, library_version: what will run it.
        gpu: what it will run on.
        power_mode: of the Jetson that it will run on, see metro_edge.machine.power_mode.
    """

    def refuse(why: str) -> None:
        raise PlanMismatchError(f"plan {path} cannot be used: {why}; build it again with `metro-edge build`")

    if onnx_sha256 is not None and info.onnx_sha256 != onnx_sha256:
        refuse(f"it was built from another ONNX graph (SHA-256 {info.onnx_sha256[:12]}, not {onnx_sha256[:12]})")
    if info.library != library:
        refuse(f"it is of {info.library}, {library} is loaded")
    compatible = info.settings.get("version_compatible") and takes_plans_of(library_version, info.library_version)
    if info.library_version != library_version and not compatible:
        refuse(f"it was built with {library} {info.library_version}, {library_version} is loaded")
    if info.platform != (here := platform_name(library)):
        refuse(f"it was built for {info.platform}, this is {here}")
    if not any(_covers(target, gpu.compute_capability) for target in info.compute_capabilities):
        refuse(f"it runs on compute capability {_text(info.compute_capabilities)}, {gpu.name} has "
               f"{gpu.compute_capability}")  # fmt: skip
    if info.gpu is not None and info.gpu != gpu.name and "compatibility" not in info.settings:
        refuse(f"it was built on {info.gpu}, this is {gpu.name}")
    if info.library == "tensorrt" and info.power_mode != power_mode:
        refuse(f"its kernels were chosen in power mode {_text(info.power_mode)}, this is {_text(power_mode)}")


def _covers(target: str, capability: str) -> bool:
    if not target.endswith("+"):
        return target == capability
    return version_of(capability) >= version_of(target[:-1])
