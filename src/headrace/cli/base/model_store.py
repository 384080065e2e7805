"""Models of a control plane: uploads, and the registry's content.

A directory is sent as a tar stream that is created during the upload.
"""

import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.cli.base.connection import CommandTarget
from headrace.cli.base.management import Document, Management
from headrace.cli.base.offline import HomeModels, Pushed
from headrace.cli.base.output import progress_bar, say
from headrace.core import InvalidArgumentError, NotFoundError
from headrace.core.text import bytes_text
from headrace.registry import (
    Content,
    ModelVersion,
    StoredFile,
    VersionSignature,
    is_repository,
    read_content,
)

_CHUNK_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class ServedModels:
    """Registry of a control plane, over its management API."""

    api: Management

    def push(self, name: str, pushed: Pushed) -> Document:
        """Upload a model as the next version of `name`, unless it exists already."""
        return stored_on(self.api, name, pushed)

    def list(self, name: str | None) -> Document:
        """Return the versions, and damaged ones."""
        return self.api.get(f"/api/v1/models/{name}" if name else "/api/v1/models")

    def get(self, reference: str) -> Document:
        """Return the version of `NAME[:VERSION]`; without a number, the newest."""
        name, _, version = reference.partition(":")
        if version:
            return self.api.get(f"/api/v1/models/{name}/versions/{version}")
        newest: Document = self.api.get(f"/api/v1/models/{name}")["models"][-1]
        return newest

    def remove(self, name: str, version: str) -> None:
        """Remove a version from the index; refused while an endpoint uses it."""
        self.api.delete(f"/api/v1/models/{name}/versions/{version}")

    def gc(self, grace_s: float) -> Document:
        """Delete content that no version refers to; return what was deleted.

        Args:
            grace_s: Seconds for which a shared store keeps content after its last push.
        """
        return self.api.post("/api/v1/gc", grace_s=grace_s)

    def add_signature(self, version: ModelVersion, signature: VersionSignature) -> None:
        """Send a signature of a version; its private key stays on this machine."""
        path = f"/api/v1/models/{version.name}/versions/{version.version}/signatures"
        self.api.post(path, msgspec.to_builtins(signature))

    def set_reference(self, version: ModelVersion, reference: dict[str, Any]) -> None:
        """Send a sketch of training data; the data itself stays on this machine."""
        path = f"/api/v1/models/{version.name}/versions/{version.version}/reference"
        self.api.put(path, reference)


ModelStore = ServedModels | HomeModels
"""Models of a target; versions are documents of the management API."""


def model_store(
    target: CommandTarget, *, state_url: str = "", artifacts: str | None = None
) -> ModelStore:
    """Return the models of a target: of its control plane, or of a home without one.

    Args:
        state_url: URL of a home's state, for models in use; empty for the home's own file.
        artifacts: Store that several homes share; with it or `state_url`, the files of the home
            are used.
    """
    if target.is_remote or (target.is_running() and not state_url and not artifacts):
        return ServedModels(target.management())
    return HomeModels(target.home, state_url, artifacts)


def stored_on(api: Management, name: str, pushed: Pushed, *, says: bool = False) -> Document:
    """Return the server's version of a local model; uploaded if there is none.

    Args:
        says: Whether progress of an upload is displayed.

    Raises:
        InvalidArgumentError: The model cannot be stored, or cannot be served there.
    """
    path = pushed.path
    content = read_content(path)
    try:
        versions = api.get(f"/api/v1/models/{name}")["models"]
    except NotFoundError:
        versions = []
    for version in reversed(versions):
        if version["digest"] == content.digest and pushed.runtime in {"", version["runtime"]}:
            same: Document = version
            return same
    is_file = path.is_file()
    length = content.size_bytes if is_file else tar_size(content)
    chunks = _file_chunks(path, content.size_bytes) if is_file else tar_chunks(path, content)
    with progress_bar(f"uploading {path.name}", length) as update:
        stored = api.upload(
            f"/api/v1/models/{name}",
            chunks,
            length_bytes=length,
            sent=lambda sent: update(completed=sent, note=bytes_text(sent)),
            filename=path.resolve().name if path.name in {"", ".."} else path.name,
            format="file" if is_file else "tar",
            digest=content.digest,
            runtime=pushed.runtime,
            allow_code=pushed.allow_code,
            source=pushed.source or str(path.absolute()),
            metadata=json.dumps(dict(pushed.metadata)) if pushed.metadata else None,
        )
    if says:
        say(f"{path} is {stored['reference']} on {api.url}")
    return stored


def with_models(
    document: Mapping[str, Any], change: Callable[[Mapping[str, Any], str], str | None]
) -> dict[str, Any]:
    """Return a spec with the models of endpoints, versions, streams and jobs replaced.

    Args:
        change: Returns the new value of a model; None keeps it. Called with the endpoint, stream or
            job that the model belongs to, and the model.
    """

    def changed(owner: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any]:
        model = item.get("model")
        reference = change(owner, model) if isinstance(model, str) else None
        return dict(item) if reference is None else {**item, "model": reference}

    result = dict(document)
    for key in _OWNERS:
        if key not in document:
            continue
        result[key] = [changed(owner, owner) for owner in document[key]]
        for owner in result[key]:
            if owner.get("versions"):
                owner["versions"] = [changed(owner, version) for version in owner["versions"]]
    return result


_OWNERS: Final = ("endpoints", "streams", "jobs")


def with_stored_models(api: Management, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return `document` with local paths replaced by the server's model references.

    What the server does not have is uploaded.

    Raises:
        InvalidArgumentError: A model cannot be stored there.
    """

    def stored(owner: Mapping[str, Any], model: str) -> str | None:
        if not model.startswith("/"):
            return None
        if is_repository(Path(model)):
            msg = (
                f"{model} is a repository of several models, which only a control plane on the "
                "same machine can read; push its models one by one with `headrace models push`"
            )
            raise InvalidArgumentError(msg)
        reference: str = stored_on(api, owner["name"], pushed_of(owner, model), says=True)[
            "reference"
        ]
        return reference

    return with_models(document, stored)


def pushed_of(owner: Mapping[str, Any], path: str) -> Pushed:
    """Return the model at `path` with the runtime and permission of its endpoint or stream."""
    return Pushed(
        path=Path(path),
        runtime=owner.get("runtime", ""),
        allow_code=bool(owner.get("allow_code", False)),
    )


def _file_chunks(path: Path, size_bytes: int) -> Iterator[bytes]:
    """Yield exactly `size_bytes` of a file, as announced in the request's headers.

    Raises:
        InvalidArgumentError: The file was truncated meanwhile.
    """
    left = size_bytes
    with path.open("rb") as stream:
        while left:
            chunk = stream.read(min(_CHUNK_BYTES, left))
            if not chunk:
                msg = f"{path} became shorter while it was read; nothing was stored"
                raise InvalidArgumentError(msg)
            left -= len(chunk)
            yield chunk


def tar_chunks(directory: Path, content: Content) -> Iterator[bytes]:
    """Yield a directory's files as one tar archive, bit for bit equal on every machine."""
    for file in content.files:
        yield _header(file)
        yield from _file_chunks(directory / file.path, file.size_bytes)
        yield bytes(-file.size_bytes % _BLOCK_BYTES)
    yield bytes(2 * _BLOCK_BYTES)


def tar_size(content: Content) -> int:
    """Return the total size in bytes of `tar_chunks`."""
    files = sum(
        len(_header(file)) + file.size_bytes + -file.size_bytes % _BLOCK_BYTES
        for file in content.files
    )
    return files + 2 * _BLOCK_BYTES


def _header(file: StoredFile) -> bytes:
    entry = tarfile.TarInfo(file.path)
    entry.size = file.size_bytes
    return entry.tobuf(tarfile.PAX_FORMAT)
