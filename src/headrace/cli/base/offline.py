"""Home without a control plane: its models and logs, by its files.

A running system is queried by the management API instead (`models.store`, `connection`).
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.cli.base.connection import actor
from headrace.cli.base.output import TransferView
from headrace.control.base.log_files import LogFiles, LogFilter, merged_tail, render_line
from headrace.control.base.settings import resolve_url
from headrace.control.model.audit_log import AuditEntry
from headrace.control.state import home_url, open_store, references_in, sqlite_path
from headrace.core import ArtifactCorruptError, NotFoundError, SystemClock
from headrace.core.redact import redact
from headrace.registry import (
    ModelVersion,
    Registry,
    VersionNotFoundError,
    VersionSignature,
    bound_to,
    open_shared,
)

if TYPE_CHECKING:
    from headrace.control.desired.resolve import Resolver
    from headrace.core import Inspect
    from headrace.core.spec.parse import SystemSpec
    from headrace.registry import SharedStore


def log_lines(home: Path, *, tail: int, source: str, log_format: str) -> list[str]:
    """Return the newest lines of all logs of `home`, or of one process.

    Raises:
        NotFoundError: No logs exist, or none of `source`.
    """
    logs = LogFiles(directory=home / "logs")
    if not logs.paths(source):
        names = ", ".join(logs.names())
        text = f"no log of '{source}'; there are: {names}" if names else f"no logs in {home}"
        raise NotFoundError(text)
    now = datetime.now(UTC)
    of_day_s = (now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
    lines = merged_tail(logs, tail, now_of_day_s=of_day_s, only=LogFilter(source=source))
    return [render_line(line, log_format=log_format) for line in lines]


def watched_store(url: str, *, retry_s: float | None = None) -> "SharedStore":
    """Return the store at `url`, with progress of transfers on a terminal.

    Args:
        retry_s: Time limit of retries; None for the default.
    """
    shared = open_shared(url) if retry_s is None else open_shared(url, retry_s=retry_s)
    shared.on_transfer = TransferView().update
    return shared


def home_registry(
    home: Path, inspect: "Inspect | None" = None, *, artifacts: str | None = None
) -> Registry:
    """Return the registry of a home, whose versions may be in a shared store.

    Args:
        artifacts: The store's URL; None for the environment's. If that is empty, the store that the
            home is a copy of, if any.

    Raises:
        InvalidArgumentError: The text is not a store URL.
    """
    url = os.environ.get("HEADRACE_ARTIFACTS", "") if artifacts is None else artifacts
    url = url or bound_to(home)
    return Registry(home, inspect, shared=watched_store(url) if url else None)


def stored_model(reference: str, home: Path) -> tuple[ModelVersion, Path]:
    """Return a version, verified against its digest, and its path.

    A shared store is used only for content that the home lacks: a job may have no network.

    Raises:
        VersionNotFoundError: The version or the model does not exist.
        ArtifactCorruptError: The content is damaged.
    """
    registry = Registry(home)
    if ":" in reference:
        with contextlib.suppress(VersionNotFoundError, ArtifactCorruptError):
            version = registry.get(reference)
            registry.verify(version)
            return version, registry.path(version)
    registry = home_registry(home)
    version = registry.get(reference)
    registry.verify(version)
    return version, registry.path(version)


@contextlib.contextmanager
def resolver(spec: "SystemSpec", home: Path, *, allow_code: bool = False) -> "Iterator[Resolver]":
    """Yield the resolver that pins models as a control plane on `home` would."""
    from headrace.control.desired.resolve import Resolver
    from headrace.control.sandboxed.run import SandboxedInspector

    with contextlib.closing(SandboxedInspector.of_home(home)) as inspect:
        yield Resolver(
            registry=Registry(home, inspect),
            inspect=inspect,
            spec=spec,
            max_body_bytes=spec.gateway.max_body_bytes,
            allow_code=allow_code,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """Model file to store, with metadata; arguments of `Registry.push`."""

    path: Path
    runtime: str = ""
    source: str = ""
    allow_code: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HomeModels:
    """Registry of a home; responses are those of the management API."""

    home: Path
    state_url: str = ""
    """URL of the state, which records models in use; empty for the home's own file."""
    artifacts: str | None = None
    """Store URL, as in `home_registry`."""

    def push(self, name: str, pushed: Pushed) -> dict[str, Any]:
        """Store a model as the next version of `name`."""
        from headrace.control.sandboxed.run import SandboxedInspector

        with contextlib.closing(SandboxedInspector.of_home(self.home)) as inspect:
            registry = home_registry(self.home, inspect, artifacts=self.artifacts)
            stored = registry.push(
                name,
                pushed.path,
                runtime=pushed.runtime,
                source=pushed.source,
                allow_code=pushed.allow_code,
                metadata=pushed.metadata,
            )
        after = {"digest": stored.digest, "source": stored.source}
        self._note("model.push", stored.reference, after=after)
        return registry.document(stored)

    def list(self, name: str | None) -> dict[str, Any]:
        """Return the versions, and damaged ones."""
        registry = home_registry(self.home, artifacts=self.artifacts)
        return {
            "models": [registry.document(version) for version in registry.list(name)],
            "problems": [str(problem) for problem in registry.problems(name)],
        }

    def get(self, reference: str) -> dict[str, Any]:
        """Return the version of `NAME[:VERSION]`; without a number, the newest."""
        registry = home_registry(self.home, artifacts=self.artifacts)
        return registry.document(registry.get(reference))

    def remove(self, name: str, version: str) -> None:
        """Remove a version from the index; refused while an endpoint uses it, or may again.

        The stored state is served once a control plane starts, so it counts without one too.
        """
        from headrace.control.telemetry.drift_files import DriftFiles

        url = resolve_url(self.state_url) or home_url(self.home)
        in_use = references_in(url, legacy=self.home / "state.json")
        removed = home_registry(self.home, artifacts=self.artifacts).remove(name, version, in_use)
        DriftFiles(self.home).forget_reference(removed.reference)
        before = {"digest": removed.digest, "source": removed.source}
        self._note("model.remove", removed.reference, before=before)

    def gc(self, grace_s: float) -> dict[str, Any]:
        """Delete content that no version refers to; return what was deleted.

        Args:
            grace_s: Seconds for which a shared store keeps content after its last push.
        """
        registry = home_registry(self.home, artifacts=self.artifacts)
        removed = asdict(registry.gc(grace_s=grace_s))
        self._note("model.gc", "", after=removed)
        return removed

    def add_signature(self, version: ModelVersion, signature: VersionSignature) -> None:
        """Store a signature of a version."""
        registry = home_registry(self.home, artifacts=self.artifacts)
        registry.add_signature(version.name, version.version, signature)
        self._note("model.sign", version.reference, after={"key": signature.key})

    def set_reference(self, version: ModelVersion, reference: dict[str, Any]) -> None:
        """Store a sketch of training data beside a version."""
        from headrace.control.telemetry.drift_files import DriftFiles
        from headrace.monitor.drift_reference import DriftReference

        sketch = msgspec.convert(reference, DriftReference)
        DriftFiles(self.home).write_reference(version.reference, sketch)
        after = {"rows": sketch.rows, "features": len(sketch.features)}
        self._note("model.reference", version.reference, after=after)

    def _note(
        self, action: str, about: str, *, before: object = None, after: object = None
    ) -> None:
        """Record a change in the audit log of the home.

        Where the home has no state yet, or keeps it in another database, there is no audit log here
        to write to: the files' owner can change them anyway.

        Raises:
            FailedPreconditionError: The audit log is there and cannot be written.
        """
        path = sqlite_path(home_url(self.home))
        if path is None or not path.exists():
            return
        change = AuditEntry(
            at=SystemClock().now(),
            actor=f"{actor()} (by hand)",
            action=action,
            object=about,
            before=redact(before),
            after=redact(after),
        )
        with contextlib.closing(open_store(home_url(self.home))) as store:
            store.add_changes.blocking([change])
