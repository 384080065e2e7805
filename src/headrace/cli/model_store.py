"""Where are a command's model versions: on this machine's home, or on a control plane elsewhere?"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from headrace.cli.connection import Target
from headrace.cli.management import Management
from headrace.cli.trail_note import note_here
from headrace.core import InvalidArgumentError
from headrace.registry import ModelVersion, VersionSignature

if TYPE_CHECKING:
    from headrace.core import Inspect
    from headrace.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What is to be stored: where it lies, and what is said of it. As `Registry.push`."""

    path: Path
    runtime: str = ""
    source: str = ""
    allow_code: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)


class ModelStore(Protocol):
    """What `headrace models` does, wherever the models are."""

    def push(self, name: str, pushed: Pushed) -> ModelVersion:
        """Store a model as the next version of `name`."""

    def list(self, name: str | None) -> tuple[list[ModelVersion], list[str]]:
        """The versions, and what is damaged."""

    def get(self, reference: str) -> ModelVersion:
        """The version that `NAME[:VERSION]` names; without a number, the newest."""

    def remove(self, name: str, version: str) -> None:
        """Take a version out of the index."""

    def gc(self, grace_s: float) -> dict[str, Any]:
        """Delete content that no version refers to; what was deleted.

        Args:
            grace_s: How long a shared store keeps content after it was pushed last.
        """

    def verify(self, version: ModelVersion) -> None:
        """Prove that what is stored of a version here is what was pushed; elsewhere, nothing."""

    def signatures(
        self, versions: Sequence[ModelVersion]
    ) -> dict[str, tuple[VersionSignature, ...]]:
        """The signatures of versions, by `NAME:VERSION`."""

    def add_signature(self, version: ModelVersion, signature: VersionSignature) -> None:
        """Keep a signature of a version."""

    def set_reference(self, version: ModelVersion, reference: dict[str, Any]) -> None:
        """Keep a sketch of training data beside a version."""


def model_store(target: Target, *, state_url: str = "", artifacts: str | None = None) -> ModelStore:
    """The models of a target; those of a home need no control plane.

    Args:
        state_url: Where a home's state is, for what is in use; empty for the home's own file.
        artifacts: The store that several homes share; as `home_registry`.
    """
    if target.is_remote:
        return RemoteModels(target.management())
    return LocalModels(target.home, state_url, artifacts)


@dataclass(frozen=True, slots=True)
class LocalModels:
    """The registry of a home on this machine."""

    home: Path
    state_url: str = ""
    artifacts: str | None = None

    def _registry(self, inspect: "Inspect | None" = None) -> "Registry":
        from headrace.cli.home_registry import home_registry  # noqa: PLC0415  # only here

        return home_registry(self.home, inspect, artifacts=self.artifacts)

    def push(self, name: str, pushed: Pushed) -> ModelVersion:
        """Store a model as the next version of `name`."""
        from headrace.control.sandboxed import SandboxedInspector  # noqa: PLC0415  # only here

        with contextlib.closing(SandboxedInspector.of_home(self.home)) as inspect:
            stored = self._registry(inspect).push(
                name,
                pushed.path,
                runtime=pushed.runtime,
                source=pushed.source,
                allow_code=pushed.allow_code,
                metadata=pushed.metadata,
            )
        after = {"digest": stored.digest, "source": stored.source}
        note_here(self.home, "model.push", stored.reference, after=after)
        return stored

    def list(self, name: str | None) -> tuple[list[ModelVersion], list[str]]:
        """The versions, and what is damaged."""
        registry = self._registry()
        return registry.list(name), [str(problem) for problem in registry.problems(name)]

    def get(self, reference: str) -> ModelVersion:
        """The version that `NAME[:VERSION]` names; without a number, the newest."""
        return self._registry().get(reference)

    def remove(self, name: str, version: str) -> None:
        """Take a version out of the index; refused while an endpoint uses it."""
        from headrace.cli.running import references_in_use  # noqa: PLC0415  # only here
        from headrace.control.drift_files import DriftFiles  # noqa: PLC0415  # only here

        in_use = references_in_use(self.home, self.state_url)
        removed = self._registry().remove(name, version, in_use)
        DriftFiles(self.home).forget_reference(removed.reference)
        before = {"digest": removed.digest, "source": removed.source}
        note_here(self.home, "model.remove", removed.reference, before=before)

    def gc(self, grace_s: float) -> dict[str, Any]:
        """Delete content that no version refers to; what was deleted."""
        removed = asdict(self._registry().gc(grace_s=grace_s))
        note_here(self.home, "model.gc", "", after=removed)
        return removed

    def verify(self, version: ModelVersion) -> None:
        """Prove that what is stored of a version is what was pushed."""
        self._registry().verify(version)

    def signatures(
        self, versions: Sequence[ModelVersion]
    ) -> dict[str, tuple[VersionSignature, ...]]:
        """The signatures of versions, by `NAME:VERSION`."""
        registry = self._registry()
        return {version.reference: registry.signatures(version) for version in versions}

    def add_signature(self, version: ModelVersion, signature: VersionSignature) -> None:
        """Keep a signature of a version."""
        self._registry().add_signature(version.name, version.version, signature)
        note_here(self.home, "model.sign", version.reference, after={"key": signature.key})

    def set_reference(self, version: ModelVersion, reference: dict[str, Any]) -> None:
        """Keep a sketch of training data beside a version."""
        from headrace.control.drift_files import DriftFiles  # noqa: PLC0415  # only here
        from headrace.monitor.drift_reference import Reference  # noqa: PLC0415  # only here

        sketch = msgspec.convert(reference, Reference)
        DriftFiles(self.home).write_reference(version.reference, sketch)
        told = {"rows": sketch.rows, "features": len(sketch.features)}
        note_here(self.home, "model.reference", version.reference, after=told)


@dataclass(frozen=True, slots=True)
class RemoteModels:
    """The registry of a control plane elsewhere, over its management API."""

    api: Management

    def push(self, name: str, pushed: Pushed) -> ModelVersion:
        """Upload a model as the next version of `name`, unless it is there already."""
        from headrace.cli.uploads import stored_on  # noqa: PLC0415  # only here

        stored = stored_on(
            self.api,
            name,
            pushed.path,
            runtime=pushed.runtime,
            source=pushed.source,
            allow_code=pushed.allow_code,
            metadata=pushed.metadata,
        )
        return _version(stored)

    def list(self, name: str | None) -> tuple[list[ModelVersion], list[str]]:
        """The versions, and what is damaged."""
        answer = self.api.get(f"/api/v1/models/{name}" if name else "/api/v1/models")
        return [_version(item) for item in answer["models"]], list(answer["problems"])

    def get(self, reference: str) -> ModelVersion:
        """The version that `NAME[:VERSION]` names; without a number, the newest."""
        name, _, version = reference.partition(":")
        if version:
            return _version(self.api.get(f"/api/v1/models/{name}/versions/{version}"))
        return _version(self.api.get(f"/api/v1/models/{name}")["models"][-1])

    def remove(self, name: str, version: str) -> None:
        """Take a version out of the index; refused while an endpoint uses it."""
        self.api.delete(f"/api/v1/models/{name}/versions/{version}")

    def gc(self, grace_s: float) -> dict[str, Any]:
        """Delete content that no version refers to; what was deleted.

        Raises:
            InvalidArgumentError: The grace is not the control plane's.
        """
        from headrace.registry.shared import GRACE_S  # noqa: PLC0415  # only here

        if grace_s != GRACE_S:
            msg = f"a server elsewhere keeps content for {GRACE_S / 3600:g} hours, not otherwise"
            raise InvalidArgumentError(msg)
        return self.api.post("/api/v1/gc")

    def verify(self, version: ModelVersion) -> None:
        """Leave it to the control plane, which does so before it serves the version."""

    def signatures(
        self, versions: Sequence[ModelVersion]
    ) -> dict[str, tuple[VersionSignature, ...]]:
        """The signatures of versions, by `NAME:VERSION`."""
        found: dict[str, tuple[VersionSignature, ...]] = {}
        for name in dict.fromkeys(version.name for version in versions):
            for item in self.api.get(f"/api/v1/models/{name}")["models"]:
                signatures = item.get("signatures", [])
                found[item["reference"]] = msgspec.convert(signatures, tuple[VersionSignature, ...])
        return {version.reference: found.get(version.reference, ()) for version in versions}

    def add_signature(self, version: ModelVersion, signature: VersionSignature) -> None:
        """Send a signature of a version; the key that made it stays here."""
        path = f"/api/v1/models/{version.name}/versions/{version.version}/signatures"
        self.api.post(path, msgspec.to_builtins(signature))

    def set_reference(self, version: ModelVersion, reference: dict[str, Any]) -> None:
        """Send a sketch of training data; the data itself stays here."""
        self.api.put(
            f"/api/v1/models/{version.name}/versions/{version.version}/reference", reference
        )


def _version(document: dict[str, Any]) -> ModelVersion:
    return msgspec.convert(document, ModelVersion)
