"""Registry that a command uses: of a home, or of a control plane elsewhere, with uploads.

A directory goes as a tar stream that is made while it is sent.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import contextlib
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from headrace.cli.access.trail import note_here
from headrace.cli.connection import Target, references_in_use
from headrace.cli.management import Document, Management
from headrace.cli.output import TransferView, say, transfer
from headrace.core import ArtifactCorruptError, InvalidArgumentError, NotFoundError
from headrace.registry import (
    Content,
    ModelVersion,
    Registry,
    StoredFile,
    VersionNotFoundError,
    VersionSignature,
    bound_to,
    is_repository,
    open_shared,
    read_content,
)

if TYPE_CHECKING:
    from headrace.core import Inspect
    from headrace.registry import SharedStore

_CHUNK_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = tarfile.BLOCKSIZE


def stored_on(
    api: Management,
    name: str,
    path: Path,
    *,
    runtime: str = "",
    source: str = "",
    allow_code: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> Document:
    """The model version on the server that is what lies at `path`; uploaded if it has none.

    Raises:
        InvalidArgumentError: It cannot be stored, or cannot be served there.
    """
    content = read_content(path)
    known = find_stored(api, name, content, runtime=runtime)
    if known is not None:
        return known
    return _upload(
        api,
        name,
        path,
        content,
        runtime=runtime,
        source=source,
        allow_code=allow_code,
        metadata=metadata,
    )


def _upload(
    api: Management,
    name: str,
    path: Path,
    content: Content,
    *,
    runtime: str,
    source: str,
    allow_code: bool,
    metadata: Mapping[str, str] | None = None,
) -> Document:
    is_file = path.is_file()
    length = content.size_bytes if is_file else tar_size(content)
    with transfer(f"uploading {path.name}", length) as sent:
        chunks = _file_chunks(path, content.size_bytes) if is_file else tar_chunks(path, content)
        return api.upload(
            f"/api/v1/models/{name}",
            chunks,
            length_bytes=length,
            sent=sent,
            filename=path.resolve().name if path.name in {"", ".."} else path.name,
            format="file" if is_file else "tar",
            digest=content.digest,
            runtime=runtime,
            allow_code=allow_code,
            source=source or str(path.absolute()),
            **({"metadata": json.dumps(dict(metadata))} if metadata else {}),
        )


def find_stored(
    api: Management, name: str, content: Content, *, runtime: str = ""
) -> Document | None:
    """The newest version of `name` on the server with this content."""
    try:
        versions = api.get(f"/api/v1/models/{name}")["models"]
    except NotFoundError:
        return None
    same = (
        version
        for version in reversed(versions)
        if version["digest"] == content.digest and runtime in {"", version["runtime"]}
    )
    return next(same, None)


def with_stored_models(api: Management, document: Mapping[str, Any]) -> dict[str, Any]:
    """`document` with each path of this machine replaced by what the server calls that model.

    What the server does not have is uploaded.

    Raises:
        InvalidArgumentError: A model cannot be stored there.
    """

    def stored(name: str, item: Mapping[str, Any]) -> dict[str, Any]:
        model = item.get("model")
        if not isinstance(model, str) or not model.startswith("/"):
            return dict(item)
        runtime = item.get("runtime", "")
        allow_code = bool(item.get("allow_code", False))
        found = _reference(api, name, Path(model), runtime, allow_code=allow_code)
        return {**item, "model": found}

    endpoints = []
    for entry in document.get("endpoints", []):
        changed = stored(entry["name"], entry)
        if entry.get("versions"):
            shared = {key: entry[key] for key in ("runtime", "allow_code") if key in entry}
            changed["versions"] = [
                {**version, "model": stored(entry["name"], {**version, **shared})["model"]}
                if "model" in version
                else version
                for version in entry["versions"]
            ]
        endpoints.append(changed)
    return {**document, "endpoints": endpoints}


def _reference(api: Management, name: str, path: Path, runtime: str, *, allow_code: bool) -> str:
    if is_repository(path):
        msg = (
            f"{path} is a repository of several models, which only a control plane on the same "
            "machine can read; push its models one by one with `headrace models push`"
        )
        raise InvalidArgumentError(msg)
    content = read_content(path)
    known = find_stored(api, name, content, runtime=runtime)
    if known is not None:
        return str(known["reference"])
    version = _upload(api, name, path, content, runtime=runtime, source="", allow_code=allow_code)
    say(f"{path} is {version['reference']} on {api.url}")
    return str(version["reference"])


def _file_chunks(path: Path, size_bytes: int) -> Iterator[bytes]:
    """Exactly `size_bytes` of a file, as the head of the request promised.

    Raises:
        InvalidArgumentError: It was cut meanwhile.
    """
    left = size_bytes
    with path.open("rb") as stream:
        while left:
            chunk = stream.read(min(_CHUNK_BYTES, left))
            if not chunk:
                msg = f"{path} was cut while it was read; nothing was stored"
                raise InvalidArgumentError(msg)
            left -= len(chunk)
            yield chunk


def tar_chunks(directory: Path, content: Content) -> Iterator[bytes]:
    """The files of a directory as one tar archive, bit for bit the same on every machine."""
    for file in content.files:
        yield _header(file)
        yield from _file_chunks(directory / file.path, file.size_bytes)
        yield bytes(-file.size_bytes % _BLOCK_BYTES)
    yield bytes(2 * _BLOCK_BYTES)


def tar_size(content: Content) -> int:
    """How many bytes `tar_chunks` gives."""
    files = sum(
        len(_header(file)) + file.size_bytes + -file.size_bytes % _BLOCK_BYTES
        for file in content.files
    )
    return files + 2 * _BLOCK_BYTES


def _header(file: StoredFile) -> bytes:
    entry = tarfile.TarInfo(file.path)
    entry.size = file.size_bytes
    return entry.tobuf(tarfile.PAX_FORMAT)


def home_registry(
    home: Path, inspect: "Inspect | None" = None, *, artifacts: str | None = None
) -> "Registry":
    """The registry of a home, whose versions may be in a shared store.

    Args:
        artifacts: The store's URL; None for what the environment says. Empty, as none, takes the
            store that the home is a copy of, if it is.

    Raises:
        InvalidArgumentError: It is no such URL.
    """
    url = os.environ.get("HEADRACE_ARTIFACTS", "") if artifacts is None else artifacts
    url = url or bound_to(home)
    return Registry(home, inspect, shared=watched_store(url) if url else None)


def stored_model(reference: str, home: Path) -> "tuple[ModelVersion, Path]":
    """A version, checked against its digest, and where it lies.

    A shared store is asked only for what is not whole in the home: a job may have no network.

    Raises:
        VersionNotFoundError: There is none; also without a number if there is no such model.
        ArtifactCorruptError: It is damaged.
    """
    here, maybe_shared = Registry(home), home_registry(home)
    if ":" in reference:
        try:
            version = here.get(reference)
            here.verify(version)
        except (VersionNotFoundError, ArtifactCorruptError):
            pass  # the store may have it
        else:
            return version, here.path(version)
    version = maybe_shared.get(reference)
    maybe_shared.verify(version)
    return version, maybe_shared.path(version)


def watched_store(url: str, *, retry_s: float | None = None) -> "SharedStore":
    """The store at `url`, whose transfers are shown where somebody watches.

    Args:
        retry_s: How long a request is tried again; None for the usual time.
    """
    shared = open_shared(url) if retry_s is None else open_shared(url, retry_s=retry_s)
    shared.tell = TransferView().tell
    return shared


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

        return home_registry(self.home, inspect, artifacts=self.artifacts)

    def push(self, name: str, pushed: Pushed) -> ModelVersion:
        """Store a model as the next version of `name`."""
        from headrace.control.sandboxed.run import SandboxedInspector

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
        from headrace.control.telemetry.drift_files import DriftFiles  # only here

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
        from headrace.control.telemetry.drift_files import DriftFiles  # only here
        from headrace.monitor.drift_reference import Reference  # only here

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
        from headrace.registry.shared import GRACE_S  # only here

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
