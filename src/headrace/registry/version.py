"""What the registry knows about one model version: the message in its index file."""

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final

import msgspec

from headrace.core import (
    ArtifactCorruptError,
    Digest,
    FirstRun,
    ModelName,
    ModelNotFoundError,
    ModelSignature,
    error_kind,
)

SCHEMA: Final = 1
UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What reading a hostile document may end with."""


class StoredFile(msgspec.Struct, frozen=True, kw_only=True):
    """One file of an artifact; `path` is relative to it, with `/`, and empty for a lone file."""

    path: str
    size_bytes: int
    sha256: str


class VersionSignature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One signature of a version: raw Ed25519, `key` and `signature` in base64.

    `at` (seconds since 1970) and `by` are what the signer said, and nothing proves them.
    """

    key: str
    signature: str
    at: float = 0.0
    by: str = ""


class ModelVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One immutable version of a model.

    `digest` covers the content: a file's SHA-256, or that of a directory's list of files.
    `filename` is the file or directory inside the artifact that a runtime loads. `labels`: for an
    output's name, its class names. `metadata` is whatever the one who pushed it wanted to keep.
    `runs_code`: its format runs code of its author's; None where an older Headrace did not say.
    `first_run`: how an inference went when it was pushed; None where nobody tried. `owner`: the
    principal who pushed it over the management API; empty where it was pushed on the machine.
    """

    name: ModelName
    version: str
    digest: Digest
    size_bytes: int
    files: tuple[StoredFile, ...]
    filename: str
    runtime: str
    signature: ModelSignature
    created_at: datetime
    created_by: str = ""
    owner: str = ""
    source: str = ""
    labels: Mapping[str, tuple[str, ...]] = {}
    metadata: Mapping[str, str] = {}
    runs_code: bool | None = None
    first_run: FirstRun | None = None
    schema: int = SCHEMA

    @property
    def reference(self) -> str:
        """`NAME:VERSION`, as the spec file and the commands take it."""
        return f"{self.name}:{self.version}"

    @property
    def executes_code(self) -> bool:
        """Whether loading it runs its author's code."""
        # Those that do not say are older: then there was no other runtime without code than onnx.
        return self.runtime != "onnx" if self.runs_code is None else self.runs_code


class VersionNotFoundError(ModelNotFoundError):
    """The registry holds no model, or no version of it, under this name."""

    def __init__(self, name: str, version: str, known: Collection[object]) -> None:
        super().__init__(name, version)
        what = f"version {version} of model '{name}'" if version else f"model '{name}'"
        there = ", ".join(str(item) for item in known) or "none"
        self.args = (f"the registry holds no {what}; there are: {there}",)


class _Schema(msgspec.Struct):
    schema: int


def encode_version(version: ModelVersion) -> bytes:
    """The version as JSON that people can read."""
    return msgspec.json.format(msgspec.json.encode(version), indent=2) + b"\n"


def decode_version(data: bytes, *, where: str) -> ModelVersion:
    """The version that `data` holds.

    Args:
        where: The file, for the error.

    Raises:
        ArtifactCorruptError: It is no index file, or a newer Headrace wrote it.
    """
    try:
        schema = msgspec.json.decode(data, type=_Schema).schema
        if schema > SCHEMA:
            msg = f"{where} was written by a newer Headrace (schema {schema}); upgrade this one"
            raise ArtifactCorruptError(msg)
        return msgspec.json.decode(data, type=ModelVersion)
    except UNREADABLE as error:
        msg = f"{where} is damaged and cannot be read: {error_kind(error)}"
        raise ArtifactCorruptError(msg) from None
