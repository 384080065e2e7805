"""Drift state files: sketches and counts of each endpoint in a small file, kept over restarts.

Only the control plane of a home writes them. References of model versions are separate files, which
`headrace models push` may write while no control plane runs.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import InvalidArgumentError, check_name, check_version, error_kind
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import make_private_dir, write_atomic
from headrace.core.state_file import StateFile
from headrace.monitor.drift_reference import HOURS, DriftReference
from headrace.monitor.drift_version import StoredDrift
from headrace.observe.features import MAX_FEATURES

_LOG: Final = logging.getLogger("headrace.control")
MAX_REFERENCE_BYTES: Final = 2 << 20


class EndpointDrift(msgspec.Struct, frozen=True, kw_only=True):
    """Stored drift state of an endpoint."""

    versions: dict[str, StoredDrift] = {}
    """Drift state by version; `given` is a reference for all versions."""
    reference: DriftReference | None = msgspec.field(name="given", default=None)


@dataclass(frozen=True, slots=True)
class DriftFiles:
    """Reads and writes the drift files of one home."""

    root: Path

    def read(self, endpoint: str) -> EndpointDrift:
        """Return the stored state of an endpoint; empty if the file is missing or damaged."""
        return self._file(endpoint).load() or EndpointDrift()

    def write(self, endpoint: str, description: EndpointDrift) -> None:
        """Store an endpoint's state; a full disk does not stop counting."""
        make_private_dir(self._of_endpoint(endpoint).parent)
        self._file(endpoint).try_save(description)

    def forget(self, endpoint: str) -> None:
        """Remove the stored state of a removed endpoint."""
        self._of_endpoint(endpoint).unlink(missing_ok=True)

    def reference(self, model: str) -> DriftReference | None:
        """Return the reference of the model version `NAME:VERSION`; None without one."""
        name, _, version = model.partition(":")
        try:
            return decode_reference(self._of_version(name, version).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, InvalidArgumentError) as error:
            extra = {"model": model, "error": str(error)}
            _LOG.warning("cannot read a model version's reference", extra=extra)
            return None

    def write_reference(self, model: str, reference: DriftReference) -> None:
        """Store the reference of the model version `NAME:VERSION`.

        Raises:
            OSError: The file cannot be written.
        """
        name, _, version = model.partition(":")
        path = self._of_version(name, version)
        make_private_dir(path.parent)
        write_atomic(path, msgspec.json.encode(reference), durable=False)

    def forget_reference(self, model: str) -> None:
        """Remove the reference of the model version `NAME:VERSION`, if it has one."""
        name, _, version = model.partition(":")
        self._of_version(name, version).unlink(missing_ok=True)

    def _file(self, endpoint: str) -> StateFile[EndpointDrift]:
        return StateFile(self._of_endpoint(endpoint), EndpointDrift, f"the drift of '{endpoint}'")

    def _of_endpoint(self, endpoint: str) -> Path:
        return self.root / "drift" / "endpoints" / f"{endpoint}.json"

    def _of_version(self, name: str, version: str) -> Path:
        if not _is_reference(name, version):
            raise FileNotFoundError(f"{name}:{version}")
        return self.root / "drift" / "references" / f"{name}@{version}.json"


def decode_reference(data: bytes) -> DriftReference:
    """Return the reference that a user uploaded.

    Raises:
        InvalidArgumentError: It is invalid, or has more features than can be monitored.
    """
    try:
        reference = msgspec.json.decode(data, type=DriftReference)
    except UNDECODABLE as error:
        raise InvalidArgumentError(f"invalid reference: {error_kind(error)}") from None
    if not 0 < len(reference.features) <= MAX_FEATURES:
        message = (
            f"a reference has 1 to {MAX_FEATURES} features, this one {len(reference.features)}"
        )
        raise InvalidArgumentError(message)
    for feature in reference.features:
        edges = feature.bins.edges
        if len(feature.counts.bins) != feature.bins.size or edges != sorted(set(edges)):
            raise InvalidArgumentError(
                f"feature '{feature.bins.name}': its bins do not fit its counts"
            )
        if len(feature.hours) not in {0, HOURS} or any(
            len(hour) != feature.bins.size for hour in feature.hours
        ):
            message = (
                f"feature '{feature.bins.name}': its {len(feature.hours)} hours do not match its "
                "bins; an hourly reference has 24: make it with "
                "`headrace drift reference set --time`"
            )
            raise InvalidArgumentError(message)
    return reference


def _is_reference(name: str, version: str) -> bool:
    """Whether these are valid registry names, and not a path."""
    try:
        check_name(name)
        check_version(version)
    except InvalidArgumentError:
        return False
    return True
