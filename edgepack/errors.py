"""The failures: one class per family, each with a stable id and an exit code.

    EdgepackError
      CheckFailed      EP1xx  exit 1    a check said no
      UsageError       EP2xx  exit 2    command line or configuration
      ModelError       EP3xx  exit 3    model refused or unconvertible
      ToolMissing      EP4xx  exit 4    a host tool is missing or too old
      DeviceUnreachable EP5xx exit 5    device unreachable or untrusted
      DeviceFailed     EP6xx  exit 6    device failed; the old version was kept
      PartlyFailed     EP701  exit 7    some of several devices failed
      IntegrityError   EP8xx  exit 8    digest or signature
      Busy             EP9xx  exit 9    somebody else holds it

A message is three sentences: what happened, what is likely, and (the hint) what to type next.
"""

from __future__ import annotations

from pathlib import Path


class EdgepackError(Exception):
    """Base of every expected failure. `id` is stable and documented in docs/errors.md."""

    exit_code = 70
    id = "EP000"

    def __init__(self, message: str, hint: str = "", *, id: str | None = None, log: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log
        if id is not None:
            self.id = id


class CheckFailed(EdgepackError):
    """A check said no: an accuracy gate, or a named variant that was not built."""

    exit_code = 1
    id = "EP101"


class UsageError(EdgepackError):
    """Command line or configuration."""

    exit_code = 2
    id = "EP201"


class ConfigError(UsageError):
    """A TOML file says something that edgepack doesn't understand; names the line."""

    id = "EP210"


class ModelError(EdgepackError):
    """The model is refused or can't be converted."""

    exit_code = 3
    id = "EP301"


class CalibrationError(ModelError):
    """Calibration data that don't fit the model."""

    id = "EP320"


class VariantError(ModelError):
    """One variant can't be made. Caught by the pipeline, which records it as that variant's outcome."""

    id = "EP330"


class MetricError(ModelError):
    """A metric that doesn't fit the model or the data, or a function of the user's that fails."""

    id = "EP326"


class Unsupported(VariantError):
    """An engine can't take this model or target, and no retry will change that; the reason says why."""

    id = "EP332"


class ToolFailed(VariantError):
    """A foreign converter crashed, hung, ate memory or wrote nothing; the message says which and how to repeat it."""

    id = "EP331"


class ToolMissing(EdgepackError):
    """A host tool is missing; the hint says what to install."""

    exit_code = 4
    id = "EP401"


class OutOfSpace(ToolMissing):
    """The disk of the cache or of the output folder is full."""

    id = "EP410"


class DeviceUnreachable(EdgepackError):
    """No connection, or the device isn't trusted."""

    exit_code = 5
    id = "EP501"


class DeviceFailed(EdgepackError):
    """The device refused or failed; what ran before still runs."""

    exit_code = 6
    id = "EP601"


class PartlyFailed(EdgepackError):
    """Some of several devices failed; each one's outcome is told."""

    exit_code = 7
    id = "EP701"


class IntegrityError(EdgepackError):
    """A digest doesn't match, or a bundle is not what its manifest says."""

    exit_code = 8
    id = "EP801"


class Busy(EdgepackError):
    """Somebody else holds a lock."""

    exit_code = 9
    id = "EP901"
