"""Which versions are in a shared store? An object each, `registry/NAME/VERSION.json`, made once.

A number belongs to whoever writes its object first. A version that was removed keeps it and gets
`VERSION.removed` beside it, so that no number is ever given again. Signatures, which come later,
are in `VERSION.signatures`, and whoever adds one writes only over what it has read.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.core import ArtifactCorruptError, HeadraceError, ModelName, check_name, error_kind
from headrace.registry.bucket import Bucket
from headrace.registry.manifest import check_digest, check_files
from headrace.registry.version import (
    UNREADABLE,
    ModelVersion,
    VersionSignature,
    decode_version,
    encode_version,
)

_PREFIX: Final = "registry/"
_LIVE: Final = "json"
_REMOVED: Final = "removed"
_SIGNATURES: Final = "signatures"


@dataclass(slots=True)
class Listed:
    """The numbers that a name has given: those of versions, and of those that were removed.

    `signatures`: the etag of a version's signatures, for those that have any.
    """

    given: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    signatures: dict[int, str] = field(default_factory=dict)

    @property
    def live(self) -> list[int]:
        """The versions there are, oldest first."""
        return sorted(self.given - self.removed)

    @property
    def next_number(self) -> int:
        """The number after every one that was ever given."""
        return max(self.given | self.removed, default=0) + 1


class SharedIndex:
    """The versions in a bucket."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket

    def list(self, name: str | None = None) -> dict[ModelName, Listed]:
        """What there is of every name, or of one; what is none of ours is skipped."""
        found: dict[ModelName, Listed] = {}
        prefix = _PREFIX if name is None else f"{_PREFIX}{check_name(name)}/"
        for info in self._bucket.list(prefix):
            model, _, rest = info.key.removeprefix(_PREFIX).partition("/")
            stem, _, suffix = rest.partition(".")
            if not _is_number(stem) or not _is_name(model):
                continue
            listed = found.setdefault(ModelName(model), Listed())
            if suffix == _LIVE:
                listed.given.add(int(stem))
            elif suffix == _REMOVED:
                listed.removed.add(int(stem))
            elif suffix == _SIGNATURES:
                listed.signatures[int(stem)] = info.etag
        return found

    def read(self, name: str, number: int | str) -> ModelVersion | None:
        """The version, removed or not; None if there never was one.

        Raises:
            ArtifactCorruptError: Its object cannot be read, or is of another version.
        """
        key = _key(name, number, _LIVE)
        found = self._bucket.read(key)
        if found is None:
            return None
        where = f"{self._bucket.where}/{key}"
        version = decode_version(found[0], where=where)
        if (version.name, version.version) != (name, str(number)):
            raise ArtifactCorruptError(f"{where} is damaged: it describes {version.reference}")
        check_files(version.filename, version.files, where=where)
        try:
            check_digest(version.digest)
        except HeadraceError as error:
            raise ArtifactCorruptError(f"{where} is damaged: {error}") from error
        return version

    def is_removed(self, name: str, number: int | str) -> bool:
        """Whether somebody has taken the version away."""
        return self._bucket.find(_key(name, number, _REMOVED)) is not None

    def create(self, version: ModelVersion) -> bool:
        """Publish a version; false if its number is somebody else's."""
        key = _key(version.name, version.version, _LIVE)
        return self._bucket.create(key, encode_version(version))

    def remove(self, version: ModelVersion) -> None:
        """Take a version out; its number stays taken."""
        self._bucket.create(_key(version.name, version.version, _REMOVED), b"{}\n")

    def signatures(self, name: str, number: int | str) -> tuple[tuple[VersionSignature, ...], str]:
        """The signatures of a version, oldest first, with their etag, which is empty for none.

        Raises:
            ArtifactCorruptError: They cannot be read.
        """
        key = _key(name, number, _SIGNATURES)
        found = self._bucket.read(key)
        if found is None:
            return (), ""
        try:
            kept = msgspec.json.decode(found[0], type=tuple[VersionSignature, ...])
        except UNREADABLE as error:
            message = (
                f"{self._bucket.where}/{key} is damaged and cannot be read: {error_kind(error)}"
            )
            raise ArtifactCorruptError(message) from None
        return kept, found[1]

    def write_signatures(
        self, name: str, number: int | str, kept: Collection[VersionSignature], etag: str
    ) -> bool:
        """Replace the signatures that `etag` stands for; false if somebody else did meanwhile."""
        key = _key(name, number, _SIGNATURES)
        data = msgspec.json.format(msgspec.json.encode(kept)) + b"\n"
        return self._bucket.replace(key, data, etag) if etag else self._bucket.create(key, data)

    def versions(self) -> Iterator[ModelVersion]:
        """Every version that was not removed.

        Raises:
            ArtifactCorruptError: One cannot be read.
        """
        for name, listed in self.list().items():
            for number in listed.live:
                version = self.read(name, number)
                if version is not None:
                    yield version


def _key(name: str, number: int | str, suffix: str) -> str:
    assert _is_number(str(number)), "whoever asks has checked it"
    return f"{_PREFIX}{check_name(name)}/{number}.{suffix}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and text == str(int(text))


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except HeadraceError:
        return False
    return True
