"""How do models of this machine get to a control plane elsewhere? Sent once, known by their digest.

A directory goes as a tar stream that is made while it is sent.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from headrace.cli.management import Document, Management
from headrace.cli.output import say, transfer
from headrace.core import InvalidArgumentError, NotFoundError
from headrace.registry import Content, StoredFile, is_repository, read_content

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
