"""Reading the file of any result as what it is: a stranger's text."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metro_edge.errors import UserError
from metro_edge.files import reason

MAX_BYTES = 128 << 20
MAX_WHOLE = 2**63  # larger whole numbers are none that was measured, and no float
# What would break lines, turn the direction of text, hide, or cannot be written as UTF-8.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]+")


@dataclass(frozen=True)
class Result:
    """A saved result.

    Attributes:
        path: of the file.
        kind: its `kind`, one of benchmarks.html.kinds.KINDS.
        data: the whole object, its texts in one line each.
    """

    path: Path
    kind: str
    data: dict[str, Any]

    @property
    def name(self) -> str:
        """Return the file's name, for words."""
        return _UNSEEN.sub(" ", self.path.name)


def read_result(path: Path) -> Result:
    """Read a result of any known kind.

    Raises:
        UserError: a file that is missing, too large, not JSON, no result of a known kind, of another schema, or that
            holds a number that is none.
    """
    from benchmarks.html.kinds import KINDS

    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has more than {MAX_BYTES >> 20} MiB: not a benchmark result")
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the result {path}: {reason(error)}") from None
    try:
        data = _clean(json.loads(text, parse_constant=_refuse))
    except (ValueError, RecursionError) as error:
        words = _UNSEEN.sub(" ", str(error))
        raise UserError(f"{path} is not a benchmark result: {words}") from None
    kind = data.get("kind") if isinstance(data, dict) else None
    known = KINDS.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise UserError(f"{path} is not a benchmark result of a known kind: {kind!r:.60}; known: {', '.join(KINDS)}")
    version = data.get("schema_version")
    if version not in known.versions:
        newer = isinstance(version, int) and version > max(known.versions)
        mend = "take a newer metro-edge" if newer else "measure again"
        versions = ", ".join(map(str, known.versions))
        raise UserError(
            f"{path} has schema version {version!r:.20} of {kind}, this metro-edge reads {versions}: {mend}"
        )
    result = Result(path, known.kind, data)
    known.check(result)
    return result


def _refuse(constant: str) -> float:
    raise ValueError(f"it holds {constant}, which is no number")


def _clean(value: Any) -> Any:
    """Return a JSON value with texts of one line each; raises ValueError for numbers that are infinite or too large."""
    if isinstance(value, dict):
        return {_UNSEEN.sub(" ", key): _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"it holds {value}, which is no number")
    if isinstance(value, int) and abs(value) > MAX_WHOLE:
        raise ValueError("it holds a whole number of more than 18 digits")
    return _UNSEEN.sub(" ", value) if isinstance(value, str) else value
