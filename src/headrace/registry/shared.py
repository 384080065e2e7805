"""A registry that several hosts share: numbers without a lock server, content by digest."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import (
    Clock,
    ConflictError,
    Digest,
    FailedPreconditionError,
    SystemClock,
)
from headrace.registry.bucket import Bucket
from headrace.registry.content import Content, Progress
from headrace.registry.manifest import Manifest
from headrace.registry.shared_content import SharedContent
from headrace.registry.shared_index import Listed, SharedIndex
from headrace.registry.version import ModelVersion, VersionSignature

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
        tell: Called while content is sent or fetched; may be replaced.
    """

    def __init__(
        self, bucket: Bucket, *, clock: Clock | None = None, tell: Transfer | None = None
    ) -> None:
        self.where = bucket.where
        self.content = SharedContent(bucket)
        self.index = SharedIndex(bucket)
        self.tell: Transfer = tell or _quiet
        self._bucket = bucket
        self._clock = clock or SystemClock()
        self._keeps_conditions = False

    def ensure(self, content: Content, source: Path, filename: str) -> Manifest:
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
        same: Callable[[Listed], ModelVersion | None],
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
            listed = self.index.list(draft.name).get(draft.name, Listed())
            found = same(listed)
            if found is not None:
                return found
            version = msgspec.structs.replace(
                draft, version=str(listed.next_number), filename=manifest.filename
            )
            if self.index.create(version):
                self._settle(content, source, manifest)
                return version
        raise ConflictError(f"others push {draft.name} to {self.where} without end; try again")

    def download(self, digest: Digest, target: Path) -> Manifest:
        """Write an artifact's file or directory to `target`; see `SharedContent.download`."""
        manifest = self.content.manifest(digest)
        self.fetch(manifest, target)
        return manifest

    def fetch(self, manifest: Manifest, target: Path) -> None:
        """Write what a manifest names to `target`; see `SharedContent.download`."""
        progress = self._progress(f"downloading {manifest.filename}")
        self.content.download(manifest, target, progress=progress)

    def change_signatures(
        self, version: ModelVersion, merge: Merge
    ) -> tuple[VersionSignature, ...]:
        """Replace a version's signatures by what `merge` makes of them; what is there then."""
        self.check_conditions()
        for _ in tries():
            found, etag = self.index.signatures(version.name, version.version)
            kept = merge(found)
            if self.index.write_signatures(version.name, version.version, kept, etag):
                return kept
        raise ConflictError(f"others sign {version.reference} without end; try again")

    def check_conditions(self) -> None:
        """Prove that the store writes only where nobody else did.

        Raises:
            FailedPreconditionError: It writes over what is there, so that two pushes could get one
                number.
        """
        if self._keeps_conditions:
            return
        mine = f"{random.getrandbits(64):016x}\n".encode()  # only has to differ
        if self._bucket.create(_PROBE, mine) and self._bucket.create(_PROBE, b"another\n"):
            raise self._careless("If-None-Match")
        found = self._bucket.read(_PROBE)
        if found is None or self._bucket.replace(_PROBE, b"over\n", _other(found[1])):
            raise self._careless("If-Match")
        self._keeps_conditions = True

    def sweep(
        self, kept: Callable[[], set[Digest]], grace_s: float = GRACE_S
    ) -> tuple[list[Digest], int]:
        """Delete content that nobody refers to; which, and how many bytes that freed.

        Args:
            kept: The digests that versions refer to, when it is called.
            grace_s: How long content stays after it was pushed last; an hour at least.
        """
        self.check_conditions()
        before = self._clock.now() - max(grace_s, MIN_GRACE_S)
        return self.content.sweep(kept, before=before)

    def _settle(self, content: Content, source: Path, manifest: Manifest) -> None:
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
        return lambda done, total: self.tell(what, done, total)


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


def _quiet(_: str, __: int, ___: int) -> None:
    """Nobody watches."""
