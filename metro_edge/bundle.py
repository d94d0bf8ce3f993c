"""Bundle: a model on disk, as a folder or one .zip of it. A bundle is data: loading one runs no code from it.

| file | what |
| --- | --- |
| spec.json | ModelSpec |
| body.npz | BodyTemplate |
| model.fp32.onnx, model.fp16.onnx, model.int8.onnx, model.fp8.onnx | the network; a bundle has at least one of them |
| passport.json | where the model comes from, what it loses, and the hash of every file above |

passport.json is an object with

- `schema_version`: 1;
- `files`: name -> {`sha256`, `bytes`} of every other file;
- `checkpoint`: {`name`, `sha256`} of the weights that were converted;
- `licences`: what -> licence, such as {`weights`: ..., `body`: ...};
- `versions`: library -> version that made the bundle;
- `accuracy`, optional: {`data`, `samples`, `protocol`, `precisions`: {precision: {`mpjpe_mm`, `pa_mpjpe_mm`,
  `mpvpe_mm`, `moved_mm`}}}, where `moved_mm` is the mean distance of the vertices from those of
  the unconverted fp32 network;
- `verification`, in place of `accuracy` where no true meshes are known: {`data`, `samples`, `protocol`, `precisions`:
  {precision: {`moved_mm`, ...}}}, distances from PyTorch alone;
- `released`, of networks that METRO released: {`network`, `entries`}, what the file was found to hold;
- whatever else its maker adds, such as `calibration`.

The hashes find files that were damaged or mixed up. They do not prove who made a bundle.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from metro_edge.archives import ZIP_ERRORS, check_ratio, open_archive
from metro_edge.errors import BundleError, UserError
from metro_edge.files import kind_of_path, reason, replacing, sha256_of, staging_folder
from metro_edge.onnx_guard import check_onnx
from metro_edge.passport import ACCURACY_KEYS as ACCURACY_KEYS
from metro_edge.passport import MENDING, SCHEMA_VERSION, parse_passport, passport_bytes
from metro_edge.passport import PASSPORT_FILE as PASSPORT_FILE
from metro_edge.spec import GRAPHS, ModelSpec, check_precision
from metro_edge.template import BodyTemplate

SPEC_FILE, BODY_FILE = "spec.json", "body.npz"
_MIB = 1 << 20
# Files beyond these sizes are refused unread: a zip of a few kB can claim terabytes.
_LIMITS = {SPEC_FILE: _MIB, PASSPORT_FILE: _MIB, BODY_FILE: 256 * _MIB}
_BODY_LIMIT = 512 * _MIB  # unpacked
_ONNX_LIMIT = 2048 * _MIB  # of one protobuf message


def onnx_file(precision: str) -> str:
    """Return the name of the ONNX file of a precision in a bundle."""
    return f"model.{check_precision(precision, GRAPHS)}.onnx"


def shipped_bundle_path() -> Path:
    """Return where the default bundle lies inside the package; it need not be there."""
    return Path(__file__).parent / "assets" / "bundle"


@dataclass(frozen=True)
class Bundle:
    """A loaded bundle; the ONNX files are read and checked when they are asked for.

    Attributes:
        path: the folder or the .zip file.
        spec: what the runtime must know about the network.
        template: the body mesh.
        passport: the content of passport.json.
    """

    path: Path
    spec: ModelSpec
    template: BodyTemplate = field(repr=False)
    passport: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Bundle:
        """Load a bundle, by default the shipped one.

        Raises:
            BundleError: nothing there, a file is missing or altered, another schema version, or parts that do
                not belong together.
        """
        if path is None:
            path = shipped_bundle_path()
            if kind_of_path(path / PASSPORT_FILE) != "file":
                raise BundleError(
                    f"this installation of metro-edge has no bundle at {path}: give the path of one, "
                    "or make one with `python -m engines convert` from a checkout"
                )
        store = _Store.open(Path(path))
        passport = _parse_passport(store.read(PASSPORT_FILE), store.name)
        spec_bytes, body_bytes = (_verified(store, passport, name) for name in (SPEC_FILE, BODY_FILE))
        try:
            spec = ModelSpec.from_json(spec_bytes.decode())
            template = _read_template(body_bytes)
            _check_match(spec, template)
        except (UserError, UnicodeDecodeError) as error:
            raise BundleError(f"bundle {store.name}: {error}") from None
        return cls(path=Path(path), spec=spec, template=template, passport=passport)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the bundle has, of fp32, fp16, int8, fp8."""
        return tuple(p for p in GRAPHS if onnx_file(p) in self.passport["files"])

    def onnx_bytes(self, precision: str) -> bytes:
        """Return the ONNX file of a precision, checked against its hash and by `metro_edge.onnx_guard`.

        Raises:
            UserError: unknown precision.
            BundleError: the bundle lacks it, or the file is missing, altered, or not self-contained ONNX.
        """
        name = self._onnx_name(precision)
        graph = _verified(self._store, self.passport, name)
        check_onnx(graph, f"{name} in bundle {self.path}")
        return graph

    def onnx_path(self, precision: str) -> Path:
        """Return the path of the ONNX file of a precision, checked against its hash; errors as `onnx_bytes`.

        A zipped bundle has no such paths and raises BundleError: unpack it, or use `onnx_bytes`.
        """
        name = self._onnx_name(precision)
        if kind_of_path(self.path) != "folder":
            raise BundleError(f"bundle {self.path} is zipped and {name} in it has no path of its own: unpack it")
        self.onnx_bytes(precision)
        return self.path / name

    def onnx_sha256(self, precision: str) -> str:
        """Return the hash of a precision's ONNX file as the passport gives it; errors as `onnx_bytes`."""
        return str(self.passport["files"][self._onnx_name(precision)]["sha256"])

    def accuracy(self, precision: str) -> dict[str, float] | None:
        """Return the passport's millimetres (ACCURACY_KEYS) of a precision, None where it has none."""
        values = self.passport.get("accuracy", {}).get("precisions", {}).get(check_precision(precision, GRAPHS))
        return None if values is None else {key: float(values[key]) for key in ACCURACY_KEYS}

    def _onnx_name(self, precision: str) -> str:
        name = onnx_file(precision)
        if name not in self.passport["files"]:
            raise BundleError(f"bundle {self.path} has no {precision} network; it has {', '.join(self.precisions)}")
        return name

    @cached_property
    def _store(self) -> _Store:
        return _Store.open(self.path)


def write_bundle(
    path: str | os.PathLike[str],
    spec: ModelSpec,
    template: BodyTemplate,
    onnx: Mapping[str, str | os.PathLike[str]],
    passport: Mapping[str, Any],
) -> Bundle:
    """Write a bundle, all of it or nothing, and load it again.

    Args:
        path: a folder, or a file that ends in .zip. An older bundle there is replaced; anything else refused.
        spec, template: see Bundle.
        onnx: precision -> ONNX file, at least one.
        passport: `checkpoint`, `licences`, `versions` and the optional keys of passport.json;
            `schema_version` and `files` are filled in here.

    Raises:
        UserError: parts that do not belong together, or a place that cannot be written.
        BundleError: a passport that is not complete.
    """
    target = Path(path)
    _check_match(spec, template)
    if not onnx:
        raise UserError(f"bundle {target} needs at least one ONNX file")
    sources = {onnx_file(precision): Path(source) for precision, source in onnx.items()}
    check_replaceable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {target}: {reason(error)}") from None
    with staging_folder(target.parent) as staging:
        folder = staging / "bundle"
        try:
            folder.mkdir()
            (folder / SPEC_FILE).write_text(spec.to_json(), encoding="utf-8")
            template.save(folder / BODY_FILE)
            for name, source in sources.items():
                shutil.copyfile(source, folder / name)
            names = (SPEC_FILE, BODY_FILE, *sources)
            files = {name: _file_entry(folder / name) for name in names}
            content = passport_bytes({**passport, "schema_version": SCHEMA_VERSION, "files": files})
            _parse_passport(content, str(target))
            (folder / PASSPORT_FILE).write_bytes(content)
            Bundle.load(folder)
            _move_into_place(folder, target, staging)
        except OSError as error:
            raise UserError(f"cannot write bundle {target}: {reason(error)}") from None
    return Bundle.load(target)


def _move_into_place(folder: Path, target: Path, staging: Path) -> None:
    if target.suffix == ".zip":
        with replacing(target) as partial, zipfile.ZipFile(partial, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
        return
    if target.exists():
        os.rename(target, staging / "older")
    try:
        os.rename(folder, target)
    except OSError:
        if (staging / "older").exists():
            os.rename(staging / "older", target)
        raise


def check_replaceable(target: Path) -> None:
    """Raise UserError unless a bundle may be written to `target`: nothing, an older bundle or a .zip is there."""
    kind = kind_of_path(target)
    if kind is None or (kind == "file" and target.suffix == ".zip"):
        return
    if target.suffix == ".zip" or kind != "folder":
        raise UserError(f"{target} is in the way of the bundle: it is not a {'file' if kind == 'folder' else 'folder'}")
    try:
        empty = not any(target.iterdir())
    except OSError as error:
        raise UserError(f"cannot look into folder {target}: {reason(error)}") from None
    if not empty and kind_of_path(target / PASSPORT_FILE) != "file":
        raise UserError(f"folder {target} is neither empty nor a bundle; choose another place")


def _check_match(spec: ModelSpec, template: BodyTemplate) -> None:
    """Raise UserError unless the spec's network makes bodies of this template."""
    if spec.body != template.name or spec.vertex_count != len(template.vertices):
        raise UserError(
            f"the spec's body is {spec.body} with {spec.vertex_count} vertices, "
            f"the template is {template.name} with {len(template.vertices)}"
        )
    if spec.joint_set not in template.regressors:
        raise UserError(f"body {template.name} has no regressor for the spec's joint set {spec.joint_set}")


def _file_entry(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"sha256": sha256_of(data), "bytes": len(data)}


def _parse_passport(content: bytes, name: str) -> dict[str, Any]:
    needed = (SPEC_FILE, BODY_FILE)
    return parse_passport(content, name, needed, (*needed, *(onnx_file(p) for p in GRAPHS)))


def _read_template(data: bytes) -> BodyTemplate:
    try:
        with open_archive(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
    except ZIP_ERRORS as error:
        raise UserError(f"{BODY_FILE} is not a readable body template: {error}") from None
    if size > _BODY_LIMIT:
        raise UserError(f"{BODY_FILE} unpacks to {size // _MIB} MiB, more than {_BODY_LIMIT // _MIB}")
    _check_headers(data)
    return BodyTemplate.load(io.BytesIO(data))


def _check_headers(data: bytes) -> None:
    """Raise UserError when an array claims more than its entry holds: a header of a few bytes would allocate it all."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
                    claimed, held = math.prod(shape) * dtype.itemsize, entry.file_size - file.tell()
                if dtype.hasobject or min(shape, default=0) < 0 or claimed != held:
                    what = f"{dtype} of shape {shape}, {claimed} bytes, where {held} are"
                    raise UserError(f"{BODY_FILE}: {entry.filename} claims to be {what}")
    except (KeyError, TypeError, OverflowError, *ZIP_ERRORS) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{BODY_FILE} is not a readable body template: {error}") from None


def _verified(store: _Store, passport: dict[str, Any], name: str) -> bytes:
    data = store.read(name)
    if sha256_of(data) != passport["files"][name]["sha256"]:
        raise BundleError(f"{name} in bundle {store.name} is not the file that {PASSPORT_FILE} names; {MENDING}")
    return data


@dataclass(frozen=True)
class _Store:
    """Named files of a folder or of a zip. Only names of this module are read, so no path leads out of it."""

    path: Path
    prefix: str  # a zip may hold the files inside one folder
    zipped: bool

    @property
    def name(self) -> str:
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> _Store:
        try:
            kind = kind_of_path(path)
        except UserError as error:
            raise BundleError(f"no bundle: {error}") from None
        if kind == "folder":
            return cls(path, "", False)
        if kind != "file":  # also pipes and devices, which would block for ever
            raise BundleError(f"no bundle at {path}: a folder or .zip with {PASSPORT_FILE} was expected")
        try:
            with open_archive(path) as archive:
                names = archive.namelist()
        except ZIP_ERRORS as error:
            raise BundleError(f"bundle {path} is neither a folder nor a readable .zip: {error}") from None
        places = [n.removesuffix(PASSPORT_FILE) for n in names if n.rsplit("/", 1)[-1] == PASSPORT_FILE]
        places = [p for p in places if p.count("/") <= 1]
        if len(places) != 1:
            raise BundleError(f"{PASSPORT_FILE} is missing in bundle {path}, or there more than once; {MENDING}")
        return cls(path, places[0], True)

    def read(self, name: str) -> bytes:
        limit = _LIMITS.get(name, _ONNX_LIMIT)
        try:
            data = self._read_zipped(name, limit) if self.zipped else self._read_file(name, limit)
        except (KeyError, FileNotFoundError):
            raise BundleError(f"{name} is missing in bundle {self.path}; {MENDING}") from None
        except ZIP_ERRORS as error:
            raise BundleError(f"{name} in bundle {self.path} cannot be read: {error}; {MENDING}") from None
        if len(data) > limit:
            raise BundleError(f"{name} in bundle {self.path} is larger than {limit // _MIB} MiB; {MENDING}")
        return data

    def _read_file(self, name: str, limit: int) -> bytes:
        if not stat.S_ISREG(os.stat(self.path / name).st_mode):
            raise OSError("it is not a regular file")  # a pipe would block for ever
        with open(self.path / name, "rb") as file:
            return file.read(limit + 1)

    def _read_zipped(self, name: str, limit: int) -> bytes:
        with open_archive(self.path) as archive, archive.open(self.prefix + name) as file:
            check_ratio(archive.getinfo(self.prefix + name))
            out = io.BytesIO()
            while (chunk := file.read(min(_MIB, limit + 1 - out.tell()))) and out.tell() <= limit:
                out.write(chunk)
            return out.getvalue()
