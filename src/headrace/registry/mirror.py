"""Copy of a shared store in a home: its index and its artifacts.

The store is authoritative. The home caches versions, so that models used once stay available when
the store is unreachable. A version's file is immutable and read once; removals and signatures come
from listings.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from headrace.core import (
    ArtifactCorruptError,
    Digest,
    FailedPreconditionError,
    ModelName,
    UnavailableError,
    check_name,
)
from headrace.core.files import write_atomic
from headrace.registry.artifacts import ArtifactStore
from headrace.registry.content import check_content
from headrace.registry.index import READ_ONLY, Index, ModelVersion, VersionSignature
from headrace.registry.shared import SharedStore, UsedNumbers

_LOG: Final = logging.getLogger("headrace.registry")
RETRY_AFTER_S: Final = 5.0
_MAX_CONCURRENT_READS: Final = 8
_MARK: Final = ".artifacts"

Locked = Callable[[], AbstractContextManager[None]]


def bound_to(home: Path) -> str:
    """Return the URL of the store that a home mirrors; empty for an independent home."""
    try:
        return (home / "registry" / _MARK).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


class Mirror:
    """Copy of `shared` in a home.

    Args:
        locked: Context manager of the registry's lock, required for writes to the home.
    """

    def __init__(
        self,
        shared: SharedStore,
        home: Path,
        index: Index,
        artifacts: ArtifactStore,
        locked: Locked,
    ) -> None:
        self.shared = shared
        self._home = home
        self._index = index
        self._artifacts = artifacts
        self._locked = locked
        self._is_bound = False
        self.unavailable: UnavailableError | None = None
        """Error of the last failed refresh; None if the store answered."""
        self._retry_at = 0.0
        self._signed: dict[tuple[str, int], str] = {}
        """Etags of the copied signatures, by name and number."""

    def refresh(self, name: str | None = None) -> list[ArtifactCorruptError]:
        """Copy the store's listing of one name or of all; return the damaged entries.

        Raises:
            UnavailableError: The store does not answer; the home is unchanged.
            FailedPreconditionError: The home holds local versions, or mirrors another store.
        """
        if name is not None:
            check_name(name)
        self._bind()
        listing = self.shared.index.list(name)
        names = {name} if name is not None else {*listing, *self._index.names()}
        problems: list[ArtifactCorruptError] = []
        for model in sorted(names):
            listed = listing.get(ModelName(model), UsedNumbers())
            problems += self.copy(model, listed)
        return problems

    def try_refresh(self, name: str | None = None) -> list[ArtifactCorruptError]:
        """Refresh, or keep the home's copy where the store does not answer.

        `unavailable` is set then, and the store is not retried for `RETRY_AFTER_S`, so that a page
        that lists models does not wait for each listing.
        """
        if self.unavailable is not None and time.monotonic() < self._retry_at:
            return []
        try:
            problems = self.refresh(name)
        except UnavailableError as error:
            _LOG.warning("the artifact store is unavailable; using this home's copy: %s", error)
            self.unavailable = error
            self._retry_at = time.monotonic() + RETRY_AFTER_S
            return []
        self.unavailable = None
        return problems

    def pull(self, digest: Digest) -> None:
        """Download an artifact, replacing a damaged copy.

        Raises:
            ArtifactCorruptError: The store lacks it, or holds it damaged.
            UnavailableError: The store does not answer.
        """
        with self._artifacts.staging() as workspace:
            staged = workspace / "artifact"
            manifest = self.shared.content.manifest(digest)
            target = staged / manifest.filename
            self.shared.fetch(manifest, target)
            check_content(target, manifest.files, digest, location=self.shared.where)
            with self._locked():
                self._artifacts.publish(staged, digest)

    def change_signatures(
        self,
        version: ModelVersion,
        merge: Callable[[tuple[VersionSignature, ...]], tuple[VersionSignature, ...]],
    ) -> tuple[VersionSignature, ...]:
        """Change signatures in the store and in the home."""
        signatures = self.shared.change_signatures(version, merge)
        self._index.write_signatures(version.name, version.version, signatures)
        return signatures

    def referenced(self) -> set[Digest]:
        """Return the digests of all versions in the store.

        Raises:
            ArtifactCorruptError: A version cannot be read, so its digest is unknown.
        """
        problems = self.refresh()
        if problems:
            raise ArtifactCorruptError(f"nothing was deleted: {problems[0]}")
        versions, problems = self._index.read_all()
        if problems:
            raise problems[0]
        return {version.digest for version in versions}

    def copy(self, name: str, listed: UsedNumbers) -> list[ArtifactCorruptError]:
        """Apply the listing of one name to the home; return the damaged entries."""
        in_home = set(self._index.numbers(name))
        in_store = set(listed.live)
        problems: list[ArtifactCorruptError] = []

        def read(number: int) -> ModelVersion | None:
            try:
                return self.shared.index.read(name, number)
            except ArtifactCorruptError as error:
                problems.append(error)
                return None

        missing = sorted(in_store - in_home)
        if missing:
            with ThreadPoolExecutor(_MAX_CONCURRENT_READS, thread_name_prefix="versions") as pool:
                new = [version for version in pool.map(read, missing) if version is not None]
            with self._locked():
                for version in new:
                    self._index.write(version)
        if in_home - in_store:
            with self._locked():
                for number in (in_home - in_store) & set(self._index.numbers(name)):
                    self._index.forget(name, number)
        for number, etag in listed.signatures.items():
            if number in in_store and self._signed.get((name, number)) != etag:
                try:
                    self._copy_signatures(name, number)
                except ArtifactCorruptError as error:
                    problems.append(error)  # of this version only: others are copied
        return problems

    def _copy_signatures(self, name: str, number: int) -> None:
        signatures, etag = self.shared.index.signatures(name, number)
        with self._locked():
            if self._index.contains(name, number):
                self._index.write_signatures(name, number, signatures)
                self._signed[name, number] = etag

    def _bind(self) -> None:
        """Bind the home to this store, or check that it is bound to it."""
        if self._is_bound:
            return
        if not self._is_owned():
            with self._locked():
                # Another thread or process may have bound the home while this one waited for the
                # lock.
                if not self._is_owned():
                    self._take()
        self._is_bound = True

    def _is_owned(self) -> bool:
        """Return whether the home mirrors this store; raise FailedPreconditionError for another."""
        bound = bound_to(self._home)
        if bound and bound != self.shared.where:
            message = (
                f"{self._home} mirrors the models in {bound}, not {self.shared.where}; use another "
                "home for that, or the same --artifacts"
            )
            raise FailedPreconditionError(message)
        return bool(bound)

    def _take(self) -> None:
        """Bind an empty home to this store."""
        own = [f"{n}:{v}" for n in self._index.names() for v in self._index.numbers(n)]
        if own:
            shown = ", ".join(own[:5]) + (", …" if len(own) > 5 else "")  # noqa: PLR2004  # enough to identify them
            message = (
                f"{self._home} holds local versions ({shown}) that are not in {self.shared.where}: "
                "use another home, and push them to the store"
            )
            raise FailedPreconditionError(message)
        mark = self._home / "registry" / _MARK
        write_atomic(mark, f"{self.shared.where}\n".encode(), mode=READ_ONLY)
