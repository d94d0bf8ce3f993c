"""Files of weights as users have them: found, read without running code, and unwrapped to a flat state dictionary."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metro_edge.errors import UserError

STATE_FILE = "state_dict.bin"  # what METRO's training writes into each checkpoint-EPOCH-STEP folder
MODEL_FILE = "model.bin"  # beside it: the whole network, pickled
_WRAPPERS = ("state_dict", "model_state_dict", "model", "network")
_PREFIX = "module."  # of torch.nn.parallel.DistributedDataParallel
_SHOWN = 8  # names in one line of text; a report holds them all


@dataclass(frozen=True)
class KeyReport:
    """What became of every entry of a foreign state dictionary, by the name it has there.

    Attributes:
        used: entries that fill the network.
        unused: entries known to take no part in the network's computation.
        unexpected: entries that nothing here knows.
        missing: entries that the network needs and the file lacks.
    """

    used: tuple[str, ...]
    unused: tuple[str, ...]
    unexpected: tuple[str, ...]
    missing: tuple[str, ...]

    def __str__(self) -> str:
        text = f"{len(self.used)} entries used, {len(self.unused)} known to be unused"
        for what, names in (("unexpected", self.unexpected), ("missing", self.missing)):
            if names:
                text += f", {len(names)} {what} ({listed(names)})"
        return text


def listed(names: Sequence[str]) -> str:
    """Return the first names, separated by commas, and how many more there are."""
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def refuse_shapes(wrong: Mapping[str, tuple[Sequence[int], Sequence[int]]], network: str) -> None:
    """Raise UserError when there are entries of a wrong shape: name -> (shape that came, shape that was wanted)."""
    if wrong:
        texts = [f"{name} has shape {tuple(came)} where {network} has {tuple(w)}" for name, (came, w) in wrong.items()]
        raise UserError(f"{len(wrong)} entries of the wrong shape: {listed(texts)}")


def find_weights(path: str | Path) -> Path:
    """Return the file at `path`; of a METRO checkpoint folder, its state dictionary.

    Raises:
        UserError: nothing there, or a folder without a state dictionary.
    """
    place = Path(path)
    if place.is_file():
        return place
    if not place.is_dir():
        raise UserError(f"no checkpoint at {path}")
    if (place / STATE_FILE).is_file():
        return place / STATE_FILE
    inside = sorted(p.parent.name for p in place.glob(f"*/{STATE_FILE}"))
    if inside:
        raise UserError(f"folder {path} holds {len(inside)} checkpoints: name one of {', '.join(inside[:5])}")
    whole = f", only {MODEL_FILE}, a pickled network, which cannot be read without running code from it"
    raise UserError(f"folder {path} has no {STATE_FILE}{whole if (place / MODEL_FILE).is_file() else ''}")


def read_weights(file: Path) -> Any:
    """Return what `torch.save` wrote into a file; tensors and plain containers only, so that no code runs.

    Tensors of a zip-format file stay mapped from disk until they are used.

    Raises:
        UserError: not such a file, damaged, or one that holds other objects.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # torch raises a different type for each kind of damage
        text = str(error)
        if "Unsupported global" in text or "Unsupported class" in text:
            found = text.split("GLOBAL ", 1)[-1].split()[0] if "GLOBAL " in text else "an object"
            hint = f"; METRO writes the weights alone to {STATE_FILE} beside it" if file.name == MODEL_FILE else ""
            raise UserError(
                f"{file} is not a readable checkpoint: it holds {found}, and only tensors, numbers, text, lists and "
                f"dictionaries are read{hint}"
            ) from None
        raise UserError(f"{file} is not a readable checkpoint: {_reason(text) or type(error).__name__}") from None


def _reason(text: str) -> str:
    """Return the first line of what torch said, without its advice to load the file by running code from it."""
    if "weights_only" in text or "PytorchStreamReader" in text:
        return "torch.save did not write it, or it is damaged or cut short"
    return text.splitlines()[0][:200] if text else ""


def state_dict_of(content: Any, file: Path) -> dict[str, Tensor]:
    """Return the state dictionary in what a file holds: itself, or under a wrapping key, with `module.` removed.

    Raises:
        UserError: there is none.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{file} holds a {type(content).__name__}, not a state dictionary")
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            content = content[key]
            break
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    others = [str(name) for name in content if not isinstance(content[name], Tensor)]
    if others or not state:
        what = f"no tensors are its entries {listed(others)}" if others else "it is empty"
        raise UserError(f"{file} is not a state dictionary: {what}")
    while all(name.startswith(_PREFIX) for name in state):
        state = {name.removeprefix(_PREFIX): value for name, value in state.items()}
    return state
