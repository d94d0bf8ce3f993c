"""Which GPUs a plan is for, from the names that people give."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from metro_edge.backends.gpu import first_gpu
from metro_edge.devices import Device, compute_capability
from metro_edge.errors import UserError
from metro_edge.plans.options import BuildOptions
from metro_edge.plans.versions import features, load_library


def capabilities_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the compute capabilities that names stand for, each once, in order.

    Args:
        names: such as `sm86,8.9` or `rtx-4090`; each may hold several, separated by commas.

    Raises:
        UserError: a name that is neither a compute capability nor a device, or none at all.
    """
    parts = [part for name in names for part in name.split(",") if part.strip()]
    if not parts:
        raise UserError("no GPU is named: compute capabilities or devices such as sm86,rtx-4090 were expected")
    return tuple(dict.fromkeys(compute_capability(part) for part in parts))


def for_device(options: BuildOptions, target: Device, library: str) -> BuildOptions:
    """Return `options` for a device: its compute capability ahead of time, or unchanged where this is the device.

    Args:
        options: without compute capabilities.
        target: that the plan is for.
        library: `tensorrt`, `tensorrt_rtx` or `auto`.

    Raises:
        UserError: the library builds on the device itself, and this is another one; or both ways were named.
        MissingExtraError: the library is not installed.
    """
    if options.capabilities:
        raise UserError("name the GPU by its device or by compute capabilities, not both")
    has = features(load_library(library))
    if has.capabilities:
        return replace(options, capabilities=(target.compute_capability,))
    gpu = first_gpu()
    if gpu is None or gpu.compute_capability != target.compute_capability:
        here = f"this machine has {gpu.name} ({gpu.compute_capability})" if gpu else "this machine has none"
        raise UserError(
            f"{has.name} builds for the GPU it runs on: a plan for {target.title} ({target.compute_capability}) is "
            f"built on it, and {here}; `--explain` says what would be done there"
        )
    return options
