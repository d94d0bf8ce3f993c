"""TensorRT of another version: TensorRT-RTX's real builder behind the names that version is recorded to have.

TensorRT itself cannot be installed where there is no GPU, so nothing here shows what it does; but a use of a name that
it lacks fails, and everything between such uses is real. tests/data/tensorrt_api.json says where the names are from.
"""

from __future__ import annotations

import enum
import json
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

API = json.loads((Path(__file__).parents[2] / "data" / "tensorrt_api.json").read_text("utf-8"))
PASSED_ON = {"ILogger", "IProgressMonitor"}  # base classes, always there


def names_of(recorded: str, kind: str) -> set[str] | None:
    """Return the names of a class in a recorded version; None where they are not known."""
    names = API[recorded]["names"].get(kind)
    return None if names is None else set(names.split())


class Restricted:
    """An object of the real library that has the recorded names only; what it returns is restricted likewise."""

    def __init__(self, real: Any, library: RecordedTensorRT, overrides: dict[str, Any] | None = None) -> None:
        self.__dict__.update(_real=real, _library=library, _overrides=overrides or {})

    def _check(self, name: str) -> None:
        real = self._real
        kind = real.__name__ if isinstance(real, type) else type(real).__name__
        known = names_of(self._library.recorded, kind)
        if known is not None and name not in known and not name.startswith("__"):
            raise AttributeError(f"{kind}.{name} is not in TensorRT {self._library.recorded}")

    def __getattr__(self, name: str) -> Any:
        self._check(name)
        if name in self._overrides:
            return self._overrides[name]
        self._library.used.add(name)
        return self._library.wrap(getattr(self._real, name))

    def __setattr__(self, name: str, value: Any) -> None:
        self._check(name)
        self._library.used.add(name)
        setattr(self._real, name, unwrap(value))

    def __call__(self, *arguments: Any) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # RTX's own, of timing caches
            return self._library.wrap(self._real(*map(unwrap, arguments)))

    def __iter__(self) -> Any:
        return iter(self._real)

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._real)


def unwrap(value: Any) -> Any:
    return value._real if isinstance(value, Restricted) else value


class RecordedTensorRT(ModuleType):
    """A module `tensorrt` of a version, with what that version's recorded classes have.

    Args:
        recorded: which of the recorded APIs.
        version: what the module calls itself.
        dla_cores: how many the builder finds.
    """

    def __init__(self, recorded: str, version: str, dla_cores: int = 0) -> None:
        super().__init__("tensorrt")
        import tensorrt_rtx

        self.real = tensorrt_rtx
        self.recorded, self.__version__ = recorded, version
        self.dla_cores = dla_cores
        self.used: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "ComputeCapability":
            raise AttributeError(f"TensorRT has no {name}")
        value = getattr(self.real, name)
        return value if name in PASSED_ON else Restricted(value, self)

    def wrap(self, value: Any) -> Any:
        module = getattr(type(value), "__module__", "")
        kind = type(value).__name__
        plain = (
            isinstance(value, (enum.Enum, type))
            or hasattr(type(value), "__members__")
            or kind in ("Dims", "IHostMemory")
        )
        if plain or not (module.startswith("tensorrt_rtx") or callable(value)):
            return value
        return Restricted(value, self, {"num_DLA_cores": self.dla_cores} if kind == "Builder" else None)
