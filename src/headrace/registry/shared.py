"""Registry that several hosts share: version numbers without a lock server, content by digest.

A variable is looked up as `HEADRACE_ARTIFACTS_NAME` first, then as `NAME`: the former is for the
store alone, and processes of models do not inherit it. `file:/PATH` as its value stands for what is
in that file.

A number belongs to whoever writes its object first. A version that was removed keeps it and gets
`VERSION.removed` beside it, so that no number is ever given again. Signatures, which come later,
are in `VERSION.signatures`, and whoever adds one writes only over what it has read.
"""

import os
import random
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from headrace.core import (
    ArtifactCorruptError,
    Clock,
    ConflictError,
    Digest,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelName,
    SystemClock,
    check_name,
)
from headrace.registry.bucket import FileBucket, ObjectStore
from headrace.registry.content import Content, Progress
from headrace.registry.index import (
    ModelVersion,
    VersionSignature,
    decode_signatures,
    decode_version,
    encode_signatures,
    encode_version,
)
from headrace.registry.shared_content import (
    ArtifactManifest,
    SharedContent,
    check_digest,
    check_files,
)

_PREFIX: Final = "registry/"
_LIVE: Final = "json"
_REMOVED: Final = "removed"
_SIGNATURES: Final = "signatures"


@dataclass(slots=True)
class UsedNumbers:
    """The numbers that a name has given: those of versions, and of those that were removed.

    `signatures`: the etag of a version's signatures, for those that have any.
    """

    issued: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    signatures: dict[int, str] = field(default_factory=dict)

    @property
    def live(self) -> list[int]:
        """The versions there are, oldest first."""
        return sorted(self.issued - self.removed)

    @property
    def next_number(self) -> int:
        """The number after every one that was ever given."""
        return max(self.issued | self.removed, default=0) + 1


class SharedIndex:
    """The versions in a bucket."""

    def __init__(self, bucket: ObjectStore) -> None:
        self._bucket = bucket

    def list(self, name: str | None = None) -> dict[ModelName, UsedNumbers]:
        """What there is of every name, or of one; what is none of ours is skipped."""
        listing: dict[ModelName, UsedNumbers] = {}
        prefix = _PREFIX if name is None else f"{_PREFIX}{check_name(name)}/"
        for info in self._bucket.list(prefix):
            model, _, rest = info.key.removeprefix(_PREFIX).partition("/")
            stem, _, suffix = rest.partition(".")
            if not _is_number(stem) or not _is_name(model):
                continue
            listed = listing.setdefault(ModelName(model), UsedNumbers())
            if suffix == _LIVE:
                listed.issued.add(int(stem))
            elif suffix == _REMOVED:
                listed.removed.add(int(stem))
            elif suffix == _SIGNATURES:
                listed.signatures[int(stem)] = info.etag
        return listing

    def read(self, name: str, number: int | str) -> ModelVersion | None:
        """The version, removed or not; None if there never was one.

        Raises:
            ArtifactCorruptError: Its object cannot be read, or is of another version.
        """
        key = _key(name, number, _LIVE)
        stored = self._bucket.read(key)
        if stored is None:
            return None
        where = f"{self._bucket.where}/{key}"
        version = decode_version(stored[0], where=where)
        if (version.name, version.version) != (name, str(number)):
            raise ArtifactCorruptError(f"{where} is damaged: it describes {version.reference}")
        check_files(version.filename, version.files, where=where)
        try:
            check_digest(version.digest)
        except HeadraceError as error:
            raise ArtifactCorruptError(f"{where} is damaged: {error}") from error
        return version

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
        stored = self._bucket.read(key)
        if stored is None:
            return (), ""
        return decode_signatures(stored[0], where=f"{self._bucket.where}/{key}"), stored[1]

    def write_signatures(
        self, name: str, number: int | str, signatures: Collection[VersionSignature], etag: str
    ) -> bool:
        """Replace the signatures that `etag` stands for; false if somebody else did meanwhile."""
        key = _key(name, number, _SIGNATURES)
        data = encode_signatures(signatures)
        return self._bucket.replace(key, data, etag) if etag else self._bucket.create(key, data)


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


GRACE_S: Final = 86_400.0
"""How long content that no version refers to stays: another host may be about to push it."""
MIN_GRACE_S: Final = 3_600.0
_FRESH_S: Final = MIN_GRACE_S / 2
_TRIES: Final = 200
_PROBE: Final = "registry/.conditions"
Transfer = Callable[[str, int, int], None]
"""Told what is sent or fetched, the bytes done and the bytes in all."""
Merge = Callable[[tuple[VersionSignature, ...]], tuple[VersionSignature, ...]]


class SharedStore:
    """Model versions and their content in a bucket.

    Args:
        on_transfer: Called while content is sent or fetched; may be replaced.
    """

    def __init__(
        self,
        bucket: ObjectStore,
        *,
        clock: Clock | None = None,
        on_transfer: Transfer | None = None,
    ) -> None:
        self.where = bucket.where
        self.content = SharedContent(bucket)
        self.index = SharedIndex(bucket)
        self.on_transfer: Transfer = on_transfer or (lambda _what, _done, _total: None)
        self._bucket = bucket
        self._clock = clock or SystemClock()
        self._keeps_conditions = False

    def ensure(self, content: Content, source: Path, filename: str) -> ArtifactManifest:
        """Have the content at `source` in the store; see `SharedContent.ensure`."""
        self.check_conditions()
        return self.content.ensure(
            content,
            source,
            filename=filename,
            now=self._clock.now,
            progress=self._progress(f"uploading {filename}"),
        )

    def publish(
        self,
        draft: ModelVersion,
        source: Path,
        same: Callable[[UsedNumbers], ModelVersion | None],
    ) -> ModelVersion:
        """Make `draft`, whose content is at `source`, the next version of its name.

        Args:
            same: Finds a version that is the same already in a listing of the name; asked again
                whenever somebody else was first with a number. The number comes from the same
                listing: whoever pushes the same in between takes it, and is found then.
        """
        content = Content(digest=draft.digest, size_bytes=draft.size_bytes, files=draft.files)
        manifest = self.ensure(content, source, draft.filename)
        for _ in tries():
            listed = self.index.list(draft.name).get(draft.name, UsedNumbers())
            existing = same(listed)
            if existing is not None:
                return existing
            version = msgspec.structs.replace(
                draft, version=str(listed.next_number), filename=manifest.filename
            )
            if self.index.create(version):
                self._settle(content, source, manifest)
                return version
        raise ConflictError(f"others push {draft.name} to {self.where} without end; try again")

    def fetch(self, manifest: ArtifactManifest, target: Path) -> None:
        """Write what a manifest names to `target`; see `SharedContent.download`."""
        progress = self._progress(f"downloading {manifest.filename}")
        self.content.download(manifest, target, progress=progress)

    def change_signatures(
        self, version: ModelVersion, merge: Merge
    ) -> tuple[VersionSignature, ...]:
        """Replace a version's signatures by what `merge` makes of them; what is there then."""
        self.check_conditions()
        for _ in tries():
            current, etag = self.index.signatures(version.name, version.version)
            merged = merge(current)
            if self.index.write_signatures(version.name, version.version, merged, etag):
                return merged
        raise ConflictError(f"others sign {version.reference} without end; try again")

    def check_conditions(self) -> None:
        """Prove that the store writes only where nobody else did.

        Raises:
            FailedPreconditionError: It writes over what is there, so that two pushes could get one
                number.
        """
        if self._keeps_conditions:
            return
        nonce = f"{random.getrandbits(64):016x}\n".encode()  # only has to differ
        if self._bucket.create(_PROBE, nonce) and self._bucket.create(_PROBE, b"another\n"):
            raise self._careless("If-None-Match")
        probe = self._bucket.read(_PROBE)
        if probe is None or self._bucket.replace(_PROBE, b"over\n", _other(probe[1])):
            raise self._careless("If-Match")
        self._keeps_conditions = True

    def sweep(
        self, list_referenced: Callable[[], set[Digest]], grace_s: float = GRACE_S
    ) -> tuple[list[Digest], int]:
        """Delete content that nobody refers to; which, and how many bytes that freed.

        Args:
            kept: The digests that versions refer to, when it is called.
            grace_s: How long content stays after it was pushed last; an hour at least.
        """
        self.check_conditions()
        before = self._clock.now() - max(grace_s, MIN_GRACE_S)
        return self.content.sweep(list_referenced, before=before)

    def _settle(self, content: Content, source: Path, manifest: ArtifactManifest) -> None:
        """Have the content there although `gc` ran since: this process may have been stopped."""
        is_old = self._clock.now() - manifest.touched_at > _FRESH_S
        if is_old or not self.content.is_held(manifest):
            self.ensure(content, source, manifest.filename)

    def _careless(self, header: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{self.where} does not heed conditions of writes ({header}), so two pushes could get "
            "one version number; use a store that does, as S3, Google Cloud Storage, Azure and "
            "MinIO do"
        )

    def _progress(self, what: str) -> Progress:
        return lambda done, total: self.on_transfer(what, done, total)


def tries(count: int = _TRIES) -> Iterator[int]:
    """Numbers, with a growing random pause between them: others want the same thing."""
    for number in range(count):
        if number:
            time.sleep(random.uniform(0, min(0.02 * number, 1.0)))  # noqa: S311  # no secret
        yield number


def _other(etag: str) -> str:
    """An etag that no object has, in the form of `etag`."""
    quoted = etag.startswith('"')
    return '"00000000000000000000000000000000"' if quoted else "0-0-0"


PREFIX: Final = "HEADRACE_ARTIFACTS_"
RETRY_S: Final = 15.0
"""How long a store that does not answer is asked again; eight times as long for content."""
_FILE: Final = "file:/"
_MOST_BYTES: Final = 1 << 20
_HOW: Final = "use s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or file:///PATH"
_BUCKET_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "s3": (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_REGION",
        "AWS_DEFAULT_REGION",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_VIRTUAL_HOSTED_STYLE_REQUEST",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_ROLE_ARN",
        "AWS_SSE_KMS_KEY_ID",
    ),
    "gs": (
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
    ),
    "az": (
        "AZURE_STORAGE_ACCOUNT_NAME",
        "AZURE_STORAGE_ACCOUNT_KEY",
        "AZURE_STORAGE_CLIENT_ID",
        "AZURE_STORAGE_CLIENT_SECRET",
        "AZURE_STORAGE_TENANT_ID",
        "AZURE_STORAGE_SAS_TOKEN",
        "AZURE_STORAGE_ENDPOINT",
        "AZURE_FEDERATED_TOKEN_FILE",
    ),
}
_OBSTORE: Final = {
    "AWS_ENDPOINT_URL": "aws_endpoint",
    "AWS_ENDPOINT_URL_S3": "aws_endpoint",
    "AWS_SSE_KMS_KEY_ID": "aws_sse_kms_key_id",
}
"""What obstore calls otherwise than the environment does; all else is the same in small letters."""


def open_shared(
    url: str,
    *,
    environment: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    retry_s: float = RETRY_S,
) -> SharedStore:
    """The shared store at `url`; nothing is asked yet.

    Args:
        environment: None for this process's.

    Raises:
        InvalidArgumentError: It is no such URL. The message does not repeat what may be a secret.
        FailedPreconditionError: The extra `artifacts` is not installed, or a file with a secret
            cannot be read.
    """
    return SharedStore(open_bucket(url, environment=environment, retry_s=retry_s), clock=clock)


def open_bucket(
    url: str, *, environment: Mapping[str, str] | None = None, retry_s: float = RETRY_S
) -> ObjectStore:
    """The same without the registry's ways of using it."""
    clean = check_artifacts_url(url)
    scheme = clean.partition(":")[0]
    if scheme == "file":
        return FileBucket(Path(unquote(urlsplit(clean).path)))
    variables = os.environ if environment is None else environment
    try:
        from headrace.registry.bucket_objects import ObjectBucket  # noqa: PLC0415  # 15 MB, an extra
    except ImportError as error:
        message = f"{clean} needs obstore: pip install 'headrace[artifacts]'"
        raise FailedPreconditionError(message) from error
    return ObjectBucket(clean, _config(scheme, variables), retry_s=retry_s)


def check_artifacts_url(url: str) -> str:
    """`url` without a slash at its end.

    Raises:
        InvalidArgumentError: It names no store, or holds what may be a secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidArgumentError(f"the URL of the artifacts is none; {_HOW}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidArgumentError(
            "the URL of the artifacts holds credentials or options; they belong into the "
            f"environment: {_HOW}"
        )
    if not url.isprintable():
        raise InvalidArgumentError(f"the URL of the artifacts holds what cannot be printed; {_HOW}")
    path = parts.path.rstrip("/")
    if parts.scheme == "file" and not parts.netloc and path:
        return f"file://{path}"
    if parts.scheme not in _NAMES:
        raise InvalidArgumentError(f"the URL of the artifacts names no store; {_HOW}")
    if _BUCKET_NAME.fullmatch(parts.netloc) is None:
        raise InvalidArgumentError(f"{parts.netloc[:200]!r} is no name of a bucket; {_HOW}")
    if any(part in {"", ".", ".."} for part in path.split("/")[1:]):
        raise InvalidArgumentError(f"{path[:200]!r} is no prefix in a bucket; {_HOW}")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _config(scheme: str, environment: Mapping[str, str]) -> dict[str, str]:
    """What the environment says of the store, in obstore's names."""
    config: dict[str, str] = {}
    for name in _NAMES[scheme]:
        value = environment.get(f"{PREFIX}{name}") or environment.get(name, "")
        if value:
            config[_OBSTORE.get(name, name.lower())] = _resolved(name, value)
    if scheme == "s3" and not {"aws_region", "aws_default_region"} & config.keys():
        config["aws_region"] = "us-east-1"  # where others than Amazon are asked for none
    return config


def _resolved(name: str, value: str) -> str:
    """What a variable means.

    Raises:
        FailedPreconditionError: It names a file that cannot be read; the message names that.
    """
    if not value.startswith(_FILE) or name.endswith("_FILE"):
        return value
    path = Path(value.removeprefix("file:"))
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise FailedPreconditionError(f"{name}: cannot read {path}: {reason}") from error
