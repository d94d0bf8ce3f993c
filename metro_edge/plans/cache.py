"""The cache of plans: built once for a graph, a library version, a GPU and options, then taken from there.

The folder is $METRO_EDGE_CACHE/plans, else $XDG_CACHE_HOME/metro-edge/plans, else ~/.cache/metro-edge/plans. A plan's
name holds the hash of all that it depends on, and its sidecar says it in full: an entry that is damaged, altered or of
something else is never used, but built again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from metro_edge.backends.gpu import Gpu, first_gpu
from metro_edge.bundle import Bundle
from metro_edge.errors import UserError
from metro_edge.files import output_folder, reason
from metro_edge.machine import power_mode
from metro_edge.plans.build import build_plan_of
from metro_edge.plans.info import (
    PlanIdentity,
    PlanInfo,
    PlanMismatchError,
    check_runs_here,
    difference,
    identity_of,
)
from metro_edge.plans.layers import layers_path
from metro_edge.plans.locks import locked
from metro_edge.plans.options import BuildOptions
from metro_edge.plans.versions import Library, check_options, features, load_library

LOGGER = logging.getLogger("metro_edge.plans")
SUFFIX = ".plan"
KEY_LENGTH = 16
NAME_LENGTH = 80  # most letters of a network's name in that of a file
MOST_TOLD = 3  # entries that could not be removed, in one message


@dataclass(frozen=True)
class Plan:
    """A plan on disk, checked.

    Attributes:
        path: of the plan.
        info: its sidecar.
        built: whether it was built just now.
    """

    path: Path
    info: PlanInfo
    built: bool


@dataclass(frozen=True)
class Entry:
    """A plan in the cache.

    Attributes:
        path: of the plan.
        info: its sidecar, None where the entry is not usable.
        problem: why it is not usable, else None.
        size_bytes: of all its files.
        used_s: when it was last used, seconds since 1970.
    """

    path: Path
    info: PlanInfo | None
    problem: str | None
    size_bytes: int
    used_s: float


def cache_folder() -> Path:
    """Return the folder of the plans; it need not be there. Raises UserError where no home folder is known."""
    if chosen := os.environ.get("METRO_EDGE_CACHE"):
        return Path(chosen).expanduser() / "plans"
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "metro-edge" / "plans"
    try:
        return Path.home() / ".cache" / "metro-edge" / "plans"
    except RuntimeError:
        raise UserError("there is no home folder for the cache of plans: set METRO_EDGE_CACHE to a folder") from None


def plan_file(bundle: Bundle, identity: PlanIdentity) -> str:
    """Return the name of a plan in the cache, such as `metro_edge.fp16.0123456789abcdef.plan`."""
    # The name is the bundle's, so a stranger's: it may not lead out of the folder.
    name = re.sub(r"[^\w.+-]", "_", bundle.spec.name, flags=re.ASCII)[:NAME_LENGTH]
    return f"{name}.{identity.precision}.{identity.key[:KEY_LENGTH]}{SUFFIX}"


def plan_for(
    bundle: Bundle,
    precision: str,
    options: BuildOptions | None = None,
    *,
    library: str = "auto",
    progress: bool = True,
    folder: Path | None = None,
) -> Plan:
    """Return the plan of a bundle for this machine from the cache, building it first where it is not there.

    Two processes that want the same plan build it once: the second waits for the first.

    Args:
        bundle: a loaded bundle, also a zipped one.
        precision: one that the bundle has.
        options, library, progress: see metro_edge.plans.build.build_plan.
        folder: of the cache, default `cache_folder()`.

    Raises:
        UserError, BundleError, MissingExtraError: as `build_plan`, or a folder that cannot be written.
    """
    options = options or BuildOptions()
    trt = load_library(library)
    has, gpu = features(trt), first_gpu()
    onnx_sha256 = bundle.onnx_sha256(precision)
    check_options(has, options, precision, gpu=gpu is not None)
    identity = identity_of(has, onnx_sha256, precision, options, gpu, power_mode=power_mode())
    folder = output_folder(cache_folder() if folder is None else folder)
    path = folder / plan_file(bundle, identity)
    if (info := _valid(path, identity)) is not None:
        return Plan(path, info, built=False)
    with locked(_lock_path(path), waiting=partial(_say_waiting, path)):
        if (info := _valid(path, identity)) is not None:
            return Plan(path, info, built=False)
        info = build_plan_of(bundle, precision, path, options=options, library=trt.__name__, progress=progress)
    return Plan(path, info, built=True)


def checked_plan(path: Path, bundle: Bundle, precision: str, *, library: str, library_version: str, gpu: Gpu) -> Plan:
    """Return a plan that the user named, checked that it belongs to the bundle and runs on this GPU.

    Raises:
        PlanMismatchError: it does not, with the reason; it is never silently used or built again.
    """
    info = PlanInfo.load(path)
    if info.precision != precision:
        raise PlanMismatchError(f"plan {path} is {info.precision}, {precision} was asked for")
    check_runs_here(
        path,
        info,
        onnx_sha256=bundle.onnx_sha256(precision),
        library=library,
        library_version=library_version,
        gpu=gpu,
        power_mode=power_mode(),
    )
    return Plan(path, info, built=False)


def named_or_cached(
    bundle: Bundle,
    precision: str,
    trt: Library,
    gpu: Gpu,
    plan: str | os.PathLike[str] | None = None,
    options: BuildOptions | None = None,
    *,
    progress: bool = True,
) -> Path:
    """Return the plan that the user named, checked as by `checked_plan`; without a name that of `plan_for`."""
    if plan is None:
        return plan_for(bundle, precision, options, library=trt.__name__, progress=progress).path
    version = trt.__version__
    named = checked_plan(Path(plan), bundle, precision, library=trt.__name__, library_version=version, gpu=gpu)
    return named.path


def entries(folder: Path | None = None) -> list[Entry]:
    """Return all plans of the cache, those used last first; raises UserError when it cannot be read."""
    folder = cache_folder() if folder is None else folder
    try:
        if not folder.is_dir():
            return []
        return sorted(map(_entry, folder.glob(f"*{SUFFIX}")), key=lambda entry: -entry.used_s)
    except OSError as error:
        raise UserError(f"cannot read the cache of plans, {folder}: {reason(error)}") from None


def prune(
    folder: Path | None = None, *, everything: bool = False, older_than_days: float | None = None
) -> Iterator[Entry]:
    """Remove entries that are not usable, and those that are asked for; yields what was removed.

    Args:
        folder: of the cache, default `cache_folder()`.
        everything: all plans.
        older_than_days: plans not used for so long.

    A plan that is being built at the moment is waited for, and looked at again.

    Raises UserError at the end, when all others are removed, for entries that cannot be; says which and why.
    """
    now_s = time.time()

    def goes(entry: Entry) -> bool:
        old = older_than_days is not None and now_s - entry.used_s > older_than_days * 86400
        return everything or old or entry.problem is not None

    left = []
    for entry in filter(goes, entries(folder)):
        try:
            with locked(_lock_path(entry.path), waiting=partial(_say_waiting, entry.path)):
                if not os.path.lexists(entry.path) or not goes(_entry(entry.path)):
                    continue
                _remove(entry.path)
        except UserError as error:
            left.append(str(error))
            continue
        yield entry
    if left:
        more = f"; and {len(left) - MOST_TOLD} more" if len(left) > MOST_TOLD else ""
        count = f"{len(left)} plan{'s' * (len(left) > 1)}"
        raise UserError(f"{count} could not be removed from the cache: {'; '.join(left[:MOST_TOLD])}{more}")


def _remove(path: Path) -> None:
    """Remove the files of an entry; raises UserError where one cannot be."""
    files = (path, PlanInfo.path_of(path), layers_path(path))
    for file in files:
        if file.is_dir() and not file.is_symlink():
            raise UserError(f"{file} is a folder, which is not of the cache: move it away")
    # The plan first: where it stays, as one that Windows has in use does, its sidecar is still needed.
    for file in files:
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {file}: {reason(error)}") from None


def _valid(path: Path, identity: PlanIdentity) -> PlanInfo | None:
    """Return the sidecar of an entry that may be used, else None; says why where there is something."""
    if not path.exists():
        return None
    try:
        info = PlanInfo.load(path)
    except PlanMismatchError as error:
        LOGGER.warning("cached plan %s is not used and built again: %s", path.name, error)
        return None
    if (why := difference(identity, PlanIdentity.of(info))) is not None:
        LOGGER.warning("cached plan %s is not used and built again: %s", path.name, why)
        return None
    with contextlib.suppress(OSError):  # a file of another user's
        os.utime(PlanInfo.path_of(path))  # when it was last used
    return info


def _entry(path: Path) -> Entry:
    sidecar = PlanInfo.path_of(path)
    files = [file for file in (path, sidecar, layers_path(path)) if file.is_file()]
    used_s = max((file.stat().st_mtime for file in files), default=0.0)
    size = sum(file.stat().st_size for file in files)
    try:
        info = PlanInfo.load(path)
        if info.key[:KEY_LENGTH] != path.name.split(".")[-2]:
            raise PlanMismatchError("its sidecar describes another plan than its name")
    except PlanMismatchError as error:
        return Entry(path, None, str(error), size, used_s)
    return Entry(path, info, None, size, used_s)


def _say_waiting(path: Path) -> None:
    LOGGER.warning("waiting for another build of %s", path.name)


def _lock_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")
