"""Copy of a shared store in a home: its index and its artifacts.

The store decides; the home keeps what it has seen, so that what was used once is there when the
store is not. A version's file is immutable, so it is read once; what was removed or signed since is
found in a listing.
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
_READS_AT_ONCE: Final = 8
_MARK: Final = ".artifacts"

Locked = Callable[[], AbstractContextManager[None]]


def bound_to(home: Path) -> str:
    """The URL of the store that a home is a copy of; empty if its versions are its own."""
    try:
        return (home / "registry" / _MARK).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


class Mirror:
    """The copy of `shared` in a home.

    Args:
        locked: Holds the registry's lock, which whoever writes in the home needs.
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
        """Why the store was not asked last; None if it was."""
        self._retry_at = 0.0
        self._signed: dict[tuple[str, int], str] = {}
        """The etags of the signatures that are copied, by name and number."""

    def refresh(self, name: str | None = None) -> list[ArtifactCorruptError]:
        """Copy what the store lists, of one name or of all; what of it is damaged.

        Raises:
            UnavailableError: The store does not answer; the home is as it was.
            FailedPreconditionError: The home has versions of its own, or of another store.
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
            _LOG.warning("the artifact store is away; using this home's copy: %s", error)
            self.unavailable = error
            self._retry_at = time.monotonic() + RETRY_AFTER_S
            return []
        self.unavailable = None
        return problems

    def pull(self, digest: Digest) -> None:
        """Have an artifact here, whole, whatever lies in its place.

        Raises:
            ArtifactCorruptError: It is not in the store, or damaged there.
            UnavailableError: The store does not answer.
        """
        with self._artifacts.staging() as workspace:
            staged = workspace / "artifact"
            manifest = self.shared.content.manifest(digest)
            target = staged / manifest.filename
            self.shared.fetch(manifest, target)
            check_content(target, manifest.files, digest, where=self.shared.where)
            with self._locked():
                self._artifacts.publish(staged, digest)

    def change_signatures(
        self,
        version: ModelVersion,
        merge: Callable[[tuple[VersionSignature, ...]], tuple[VersionSignature, ...]],
    ) -> tuple[VersionSignature, ...]:
        """Change signatures in the store, and here."""
        signatures = self.shared.change_signatures(version, merge)
        self._index.write_signatures(version.name, version.version, signatures)
        return signatures

    def referenced(self) -> set[Digest]:
        """The digests of all versions in the store.

        Raises:
            ArtifactCorruptError: A version cannot be read, so what it refers to is not known.
        """
        problems = self.refresh()
        if problems:
            raise ArtifactCorruptError(f"nothing was deleted: {problems[0]}")
        versions, problems = self._index.read_all()
        if problems:
            raise problems[0]
        return {version.digest for version in versions}

    def copy(self, name: str, listed: UsedNumbers) -> list[ArtifactCorruptError]:
        """Copy what a listing of one name says; what of it is damaged."""
        here = set(self._index.numbers(name))
        there = set(listed.live)
        problems: list[ArtifactCorruptError] = []

        def read(number: int) -> ModelVersion | None:
            try:
                return self.shared.index.read(name, number)
            except ArtifactCorruptError as error:
                problems.append(error)
                return None

        missing = sorted(there - here)
        if missing:
            with ThreadPoolExecutor(_READS_AT_ONCE, thread_name_prefix="versions") as pool:
                new = [version for version in pool.map(read, missing) if version is not None]
            with self._locked():
                for version in new:
                    self._index.write(version)
        if here - there:
            with self._locked():
                for number in (here - there) & set(self._index.numbers(name)):
                    self._index.forget(name, number)
        for number, etag in listed.signatures.items():
            if number in there and self._signed.get((name, number)) != etag:
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
        """Make sure that this home is a copy of this store, and of no other."""
        if self._is_bound:
            return
        if not self._is_ours():
            with self._locked():
                # Another thread or process may have done all of this while we waited.
                if not self._is_ours():
                    self._take()
        self._is_bound = True

    def _is_ours(self) -> bool:
        """Whether the home is a copy of this store; FailedPreconditionError if of another."""
        bound = bound_to(self._home)
        if bound and bound != self.shared.where:
            message = (
                f"{self._home} keeps a copy of the models in {bound}, not {self.shared.where}; use "
                "another home for that, or the same --artifacts"
            )
            raise FailedPreconditionError(message)
        return bool(bound)

    def _take(self) -> None:
        """Make an empty home a copy of this store."""
        own = [f"{n}:{v}" for n in self._index.names() for v in self._index.numbers(n)]
        if own:
            shown = ", ".join(own[:5]) + (", …" if len(own) > 5 else "")  # noqa: PLR2004  # enough to know them
            message = (
                f"{self._home} has versions of its own ({shown}), which "
                f"{self.shared.where} does not know: push them there from another home"
            )
            raise FailedPreconditionError(message)
        mark = self._home / "registry" / _MARK
        write_atomic(mark, f"{self.shared.where}\n".encode(), mode=READ_ONLY)
