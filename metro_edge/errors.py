"""The exceptions a user can meet: each says what came, what was expected and how to mend it."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake in what the user gave; the command line prints it in one line and exits with code 2."""


class BundleError(UserError):
    """A bundle that is incomplete, altered or of an unknown schema version."""


class PredictionError(UserError):
    """A network's output of which no body can be made."""


class DeviceError(UserError):
    """The GPU or its driver failed: no memory left, a fault in a kernel, a device that is lost."""


class NobodyError(PredictionError):
    """Numbers as a network gives them for a box in which nobody is; in a video the person is lost, not the run."""


class MissingExtraError(UserError):
    """An optional part that is not installed.

    Args:
        package: the import name that is missing.
        extra: the extra of setup.py that installs it.
        purpose: what it is needed for, as the end of "... is needed to".
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"{package} is needed to {purpose}: pip install 'metro-edge[{extra}]'")
