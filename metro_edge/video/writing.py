"""What the sinks share."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from metro_edge.errors import UserError
from metro_edge.files import reason


@contextlib.contextmanager
def written(path: str | os.PathLike[str] | None) -> Iterator[None]:
    """Turn what the system says about writing `path`, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {'' if path is None else Path(path)}: {reason(error)}") from None
