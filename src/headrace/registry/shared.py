"""Shared registry of several hosts: version numbers without a lock server, content by digest.

A variable is looked up as `HEADRACE_ARTIFACTS_NAME` first, then as `NAME`. The former applies to
the store only, and model processes do not inherit it. A value `file:/PATH` is read from that file.

The first writer of a number's object owns the number. A removed version gets `VERSION.removed`
beside it, so that its number is never reused. Signatures, which are added later, are in
`VERSION.signatures`; a writer replaces only the content that it has read.
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
    """Version numbers of a name: issued and removed."""

    issued: set[int] = field(default_factory=set)
    removed: set[int] = field(default_factory=set)
    signatures: dict[int, str] = field(default_factory=dict)
    """The etag of a version's signatures, for those that have any."""

    @property
    def live(self) -> list[int]:
        """Existing versions, oldest first."""
        return sorted(self.issued - self.removed)

    @property
    def next_number(self) -> int:
        """Return the first number that was never used."""
        return max(self.issued | self.removed, default=0) + 1


class SharedIndex:
    """Index of versions in an object store."""

    def __init__(self, bucket: ObjectStore) -> None:
        self._bucket = bucket

    def list(self, name: str | None = None) -> dict[ModelName, UsedNumbers]:
        """Return the numbers of every name, or of one; foreign objects are skipped."""
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
        """Return the version, removed or not; None if it never existed.

        Raises:
            ArtifactCorruptError: Its object cannot be read, or is of another version.
        """
        key = _key(name, number, _LIVE)
        stored = self._bucket.read(key)
        if stored is None:
            return None
        location = f"{self._bucket.where}/{key}"
        version = decode_version(stored[0], location=location)
        if (version.name, version.version) != (name, str(number)):
            raise ArtifactCorruptError(f"{location} is damaged: it describes {version.reference}")
        check_files(version.filename, version.files, location=location)
        try:
            check_digest(version.digest)
        except HeadraceError as error:
            raise ArtifactCorruptError(f"{location} is damaged: {error}") from error
        return version

    def create(self, version: ModelVersion) -> bool:
        """Publish a version; return False if its number is taken."""
        key = _key(version.name, version.version, _LIVE)
        return self._bucket.create(key, encode_version(version))

    def remove(self, version: ModelVersion) -> None:
        """Remove a version; its number is never reused."""
        self._bucket.create(_key(version.name, version.version, _REMOVED), b"{}\n")

    def signatures(self, name: str, number: int | str) -> tuple[tuple[VersionSignature, ...], str]:
        """Return a version's signatures, oldest first, with their etag (empty for none).

        Raises:
            ArtifactCorruptError: They cannot be read.
        """
        key = _key(name, number, _SIGNATURES)
        stored = self._bucket.read(key)
        if stored is None:
            return (), ""
        return decode_signatures(stored[0], location=f"{self._bucket.where}/{key}"), stored[1]

    def write_signatures(
        self, name: str, number: int | str, signatures: Collection[VersionSignature], etag: str
    ) -> bool:
        """Replace the signatures with this `etag`; return False if they changed meanwhile."""
        key = _key(name, number, _SIGNATURES)
        data = encode_signatures(signatures)
        return self._bucket.replace(key, data, etag) if etag else self._bucket.create(key, data)


def _key(name: str, number: int | str, suffix: str) -> str:
    assert _is_number(str(number)), "the caller has checked it"
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
"""How long unreferenced content stays, as another host may soon refer to it."""
MIN_GRACE_S: Final = 3_600.0
_FRESH_S: Final = MIN_GRACE_S / 2
_TRIES: Final = 200
_PROBE: Final = "registry/.conditions"
Transfer = Callable[[str, int, int], None]
"""Called with a description of the transfer, the bytes done and the total bytes."""
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
        """Upload the content at `source` if the store lacks it; see `SharedContent.ensure`."""
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
        """Publish `draft`, whose content is at `source`, as the next version of its name.

        Args:
            same: Returns an equal version from a listing of the name; called again after each lost
                race for a number. The number comes from the same listing, so an equal version
                pushed in between takes that number and is returned on the next call.
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
        raise ConflictError(
            f"too many concurrent pushes of {draft.name} to {self.where}; try again"
        )

    def fetch(self, manifest: ArtifactManifest, target: Path) -> None:
        """Download a manifest's content to `target`; see `SharedContent.download`."""
        progress = self._progress(f"downloading {manifest.filename}")
        self.content.download(manifest, target, progress=progress)

    def change_signatures(
        self, version: ModelVersion, merge: Merge
    ) -> tuple[VersionSignature, ...]:
        """Replace a version's signatures by the result of `merge`, and return it."""
        self.check_conditions()
        for _ in tries():
            current, etag = self.index.signatures(version.name, version.version)
            merged = merge(current)
            if self.index.write_signatures(version.name, version.version, merged, etag):
                return merged
        raise ConflictError(f"too many concurrent signatures of {version.reference}; try again")

    def check_conditions(self) -> None:
        """Check that the store honours conditional writes.

        Raises:
            FailedPreconditionError: It ignores the conditions, so that two pushes could get one
                number.
        """
        if self._keeps_conditions:
            return
        nonce = f"{random.getrandbits(64):016x}\n".encode()  # only has to differ from the object's
        if self._bucket.create(_PROBE, nonce) and self._bucket.create(_PROBE, b"another\n"):
            raise self._careless("If-None-Match")
        probe = self._bucket.read(_PROBE)
        if probe is None or self._bucket.replace(_PROBE, b"over\n", _other(probe[1])):
            raise self._careless("If-Match")
        self._keeps_conditions = True

    def sweep(
        self, list_referenced: Callable[[], set[Digest]], grace_s: float = GRACE_S
    ) -> tuple[list[Digest], int]:
        """Delete unreferenced content; return its digests and the bytes freed.

        Args:
            list_referenced: Returns the digests that versions refer to.
            grace_s: How long content stays after its last push; an hour at least.
        """
        self.check_conditions()
        before = self._clock.now() - max(grace_s, MIN_GRACE_S)
        return self.content.sweep(list_referenced, before=before)

    def _settle(self, content: Content, source: Path, manifest: ArtifactManifest) -> None:
        """Upload the content again if `gc` may have deleted it since, after a long pause."""
        is_old = self._clock.now() - manifest.touched_at > _FRESH_S
        if is_old or not self.content.is_held(manifest):
            self.ensure(content, source, manifest.filename)

    def _careless(self, header: str) -> FailedPreconditionError:
        return FailedPreconditionError(
            f"{self.where} ignores conditional writes ({header}), so two pushes could get one "
            "version number; use a store that supports them, such as S3, Google Cloud Storage, "
            "Azure or MinIO"
        )

    def _progress(self, description: str) -> Progress:
        return lambda done, total: self.on_transfer(description, done, total)


def tries(count: int = _TRIES) -> Iterator[int]:
    """Yield attempt numbers with a growing random pause between them."""
    for number in range(count):
        if number:
            time.sleep(random.uniform(0, min(0.02 * number, 1.0)))  # noqa: S311  # no secret
        yield number


def _other(etag: str) -> str:
    """Return an etag of no object, in the format of `etag`."""
    quoted = etag.startswith('"')
    return '"00000000000000000000000000000000"' if quoted else "0-0-0"


PREFIX: Final = "HEADRACE_ARTIFACTS_"
RETRY_S: Final = 15.0
"""Retry time of a store that does not answer; eight times as long for content."""
_FILE: Final = "file:/"
_MAX_BYTES: Final = 1 << 20
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
        "AWS_SKIP_SIGNATURE",
    ),
    "gs": (
        "GOOGLE_SERVICE_ACCOUNT",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
        "GOOGLE_APPLICATION_CREDENTIALS",
        "GOOGLE_SKIP_SIGNATURE",
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
        "AZURE_SKIP_SIGNATURE",
    ),
}
_OBSTORE: Final = {
    "AWS_ENDPOINT_URL": "aws_endpoint",
    "AWS_ENDPOINT_URL_S3": "aws_endpoint",
    "AWS_SSE_KMS_KEY_ID": "aws_sse_kms_key_id",
}
"""obstore option names that are not the lower-case variable name."""


def open_shared(
    url: str,
    *,
    environment: Mapping[str, str] | None = None,
    clock: Clock | None = None,
    retry_s: float = RETRY_S,
) -> SharedStore:
    """Return the shared store at `url` without contacting it.

    Args:
        environment: None for the process environment.

    Raises:
        InvalidArgumentError: The URL is invalid. The message never repeats possible secrets.
        FailedPreconditionError: The extra `artifacts` is not installed, or a file with a secret
            cannot be read.
    """
    return SharedStore(open_bucket(url, environment=environment, retry_s=retry_s), clock=clock)


def open_bucket(
    url: str, *, environment: Mapping[str, str] | None = None, retry_s: float = RETRY_S
) -> ObjectStore:
    """Return the object store at `url` without contacting it."""
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
    """Check an artifact store URL and return it without a trailing slash.

    Raises:
        InvalidArgumentError: The URL names no store, or may hold a secret.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise InvalidArgumentError(f"the artifact store URL is invalid; {_HOW}") from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise InvalidArgumentError(
            "the artifact store URL holds credentials or options; set them in the environment, "
            f"and {_HOW}"
        )
    if not url.isprintable():
        raise InvalidArgumentError(f"the artifact store URL holds unprintable characters; {_HOW}")
    path = parts.path.rstrip("/")
    if parts.scheme == "file" and not parts.netloc and path:
        return f"file://{path}"
    if parts.scheme not in _NAMES:
        raise InvalidArgumentError(f"the artifact store URL has an unknown scheme; {_HOW}")
    if _BUCKET_NAME.fullmatch(parts.netloc) is None:
        raise InvalidArgumentError(f"{parts.netloc[:200]!r} is not a bucket name; {_HOW}")
    if any(part in {"", ".", ".."} for part in path.split("/")[1:]):
        raise InvalidArgumentError(f"{path[:200]!r} is not a valid prefix in a bucket; {_HOW}")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _config(scheme: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the store's settings from the environment, in obstore's names."""
    config: dict[str, str] = {}
    for name in _NAMES[scheme]:
        value = environment.get(f"{PREFIX}{name}") or environment.get(name, "")
        if value:
            config[_OBSTORE.get(name, name.lower())] = _resolved(name, value)
    if scheme == "s3" and not {"aws_region", "aws_default_region"} & config.keys():
        config["aws_region"] = "us-east-1"  # S3-compatible stores need none
    return config


def _resolved(name: str, value: str) -> str:
    """Return a variable's value, read from its file if it names one.

    Raises:
        FailedPreconditionError: Its file cannot be read; the message names the file.
    """
    if not value.startswith(_FILE) or name.endswith("_FILE"):
        return value
    path = Path(value.removeprefix("file:"))
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise FailedPreconditionError(f"{name}: cannot read {path}: {reason}") from error
