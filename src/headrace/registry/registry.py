"""Registry of immutable model versions, by name and number.

    artifacts/sha256/DIGEST/FILENAME    content, shared by equal versions
    artifacts/tmp/                      pushes in progress, and leftovers of crashed ones
    registry/NAME/VERSION.json          metadata of a version

A version exists once its index file does, which is written last and atomically: a crash at any
point leaves at worst an unreferenced artifact, which `gc` deletes.

With a shared store the layout there is the same, and the home is a copy of it (`mirror`).
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.core import (
    ArtifactCorruptError,
    Clock,
    CodeNotAllowedError,
    Digest,
    FailedPreconditionError,
    Inspect,
    InvalidArgumentError,
    ModelName,
    SystemClock,
    check_name,
    check_version,
)
from headrace.core.files import exclusive, move
from headrace.registry.artifacts import (
    ArtifactStore,
    check_labels,
    inspect_staged,
    storage_errors,
    stored_name,
    user_name,
)
from headrace.registry.content import (
    Content,
    Progress,
    check_content,
    copy_content,
    differences,
    read_content,
)
from headrace.registry.index import Index, ModelVersion, VersionNotFoundError, VersionSignature
from headrace.registry.mirror import Mirror, bound_to
from headrace.registry.shared import GRACE_S, SharedStore, UsedNumbers

Versions = list[ModelVersion]
Problems = list[ArtifactCorruptError]

MAX_SIGNATURES: Final = 32
LOCK_TIMEOUT_S: Final = 60.0
_PRIVATE: Final = 0o700
"""Mode of a new home, which will also hold state and sockets."""
TEMPORARY_AGE_S: Final = 86_400.0
"""Age after which `gc` treats an untouched temporary directory as left by a crash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbageReport:
    """Result of `Registry.gc`."""

    artifacts: tuple[Digest, ...]
    temporary: int
    freed_bytes: int

    def __str__(self) -> str:
        return (
            f"{len(self.artifacts)} artifacts and {self.temporary} temporary directories, "
            f"{self.freed_bytes} bytes"
        )


class Registry:
    """Model versions under one home directory.

    Safe for concurrent use by several threads and processes. Opening creates nothing.

    Args:
        home: Directory of the state (`HEADRACE_HOME`).
        inspect: Needed to push; `headrace.runtimes.inspect_model` in production.
        shared: Store that several homes share; None for an independent home.
    """

    def __init__(
        self,
        home: Path,
        inspect: Inspect | None = None,
        *,
        clock: Clock | None = None,
        shared: SharedStore | None = None,
    ) -> None:
        self.home = home
        self._inspect = inspect
        self._clock = clock or SystemClock()
        self._artifacts = ArtifactStore(home / "artifacts")
        self._index = Index(home / "registry")
        self._mirror = (
            None
            if shared is None
            else Mirror(shared, home, self._index, self._artifacts, self._locked)
        )

    def push(
        self,
        name: str,
        path: Path,
        *,
        runtime: str = "",
        allow_code: bool = False,
        source: str = "",
        by: str = "",
        owner: str = "",
        inspect: Inspect | None = None,
        beneath: Path | None = None,
        labels: Mapping[str, Collection[str]] | None = None,
        metadata: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> ModelVersion:
        """Store a model as the next version of `name`, after checking that it loads.

        Pushing equal content, runtime and labels again under the same name returns the existing
        version.

        Args:
            path: A file, or a directory of which every file is stored.
            runtime: Name of the runtime; empty detects it.
            allow_code: Whether inspecting the model may run its author's code.
            source: Origin of the model; empty for `path`.
            by: Name of the pusher; empty for this process's user.
            owner: Principal of the management API that pushes; empty for a local push.
            inspect: Replaces the registry's own inspection.
            beneath: A directory above `path` that no link may leave on the way there.
            labels: Class names by output.
            metadata: Free-form entries stored with the version.
            progress: Called with the bytes stored so far and in all.

        Raises:
            UnsupportedModelError: No runtime can serve the model.
            CodeNotAllowedError: Loading would run code; nothing was run or stored.
            InvalidArgumentError: The name is not allowed, or the path cannot be stored.
            FailedPreconditionError: The disk is full or not writable.
        """
        check_name(name)
        inspect = inspect or self._inspect
        if inspect is None:
            msg = (
                "this registry is read-only: pass `inspect=headrace.runtimes.inspect_model` to push"
            )
            raise FailedPreconditionError(msg)
        class_names = {output: tuple(names) for output, names in (labels or {}).items()}
        path = path.absolute()
        with storage_errors(f"cannot store {path}", self.home):
            if not self.home.exists():
                self.home.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
            if self._mirror is not None:
                self._mirror.refresh(name)
            existing = self._same(
                name, read_content(path, beneath=beneath).digest, runtime, class_names
            )
            if existing is not None:
                if existing.executes_code and not allow_code:
                    raise CodeNotAllowedError(str(path), existing.runtime)
                self._keep_shared(existing)
                return existing
            self._check_own()
            with self._artifacts.staging() as workspace:
                staged = workspace / "artifact"
                filename = stored_name(path)
                content = copy_content(path, staged / filename, beneath=beneath, progress=progress)
                inspected = inspect_staged(
                    inspect, staged / filename, path, runtime, allow_code=allow_code
                )
                check_labels(inspected.signature, class_names)
                versions, _ = self._index.read_all()
                self._artifacts.share(staged / filename, content.files, versions)
                draft = ModelVersion(
                    name=ModelName(name),
                    version="",  # known when it is published
                    digest=content.digest,
                    size_bytes=content.size_bytes,
                    files=content.files,
                    filename=filename,
                    runtime=inspected.runtime,
                    signature=inspected.signature,
                    runs_code=inspected.runs_code,
                    first_run=inspected.first_run,
                    created_at=datetime.fromtimestamp(self._clock.now(), UTC),
                    created_by=by or user_name(),
                    owner=owner,
                    source=source or str(path),
                    labels=class_names,
                    metadata={**inspected.metadata, **(metadata or {})},
                )
                return self._publish(staged, draft)

    def get(self, reference: str) -> ModelVersion:
        """Return the version `NAME:VERSION`, or the newest version of `NAME`.

        Raises:
            VersionNotFoundError: It does not exist; the message lists the existing versions.
            ArtifactCorruptError: Its index file cannot be read.
            UnavailableError: The home's copy lacks it, and the shared store does not answer.
        """
        name, colon, version = reference.partition(":")
        check_name(name)
        if self._mirror is not None:
            # A cached number stays valid without the store; only the store knows the newest number.
            (self._mirror.try_refresh if colon else self._mirror.refresh)(name)
        numbers = self._index.numbers(name)
        if not numbers:
            self._check_store_answers()
            raise VersionNotFoundError(name, "", self._index.names())
        if colon:
            check_version(version)
        stored = self._index.read(name, version.lstrip("0") or "0" if colon else numbers[-1])
        if stored is None:
            self._check_store_answers()
            raise VersionNotFoundError(name, version, numbers)
        return stored

    def list(self, name: str | None = None) -> Versions:
        """Return all versions, or those of one name, by name and number.

        Damaged index files are skipped; see `problems`.
        """
        self._follow(name)
        versions, _ = self._index.read_all(name)
        return versions

    def owners(self, name: str) -> frozenset[str]:
        """Return the principals who pushed the existing versions of a name."""
        return frozenset(version.owner for version in self._index.read_all(name)[0])

    def problems(self, name: str | None = None) -> Problems:
        """Return an error for each index file that cannot be read."""
        damaged = self._follow(name)
        _, problems = self._index.read_all(name)
        return [*damaged, *problems]

    def path(self, version: ModelVersion) -> Path:
        """Return the file or directory that a runtime loads, fetching it from the shared store.

        Raises:
            ArtifactCorruptError: The artifact is missing.
            UnavailableError: The shared store does not answer.
        """
        path = self._artifacts.path(version.digest) / version.filename
        if not path.exists() and self._mirror is not None:
            with storage_errors(f"cannot fetch {version.reference}", self.home):
                self._mirror.pull(version.digest)
        if not path.exists():
            msg = f"{version.reference}: its artifact is missing ({path})"
            raise ArtifactCorruptError(msg)
        return path

    def fetch_content(self, digest: Digest) -> None:
        """Fetch an artifact that the home lacks from the shared store, if one is configured.

        Raises:
            NotFoundError: The store does not have it.
            ArtifactCorruptError: It is damaged there.
            UnavailableError: The store does not answer.
        """
        if self._mirror is not None and not self._artifacts.path(digest).exists():
            with storage_errors(f"cannot fetch {digest}", self.home):
                self._mirror.pull(digest)

    def signatures(self, version: ModelVersion) -> tuple[VersionSignature, ...]:
        """Return a version's signatures, oldest first, without verifying them.

        Raises:
            ArtifactCorruptError: They cannot be read.
        """
        return self._index.signatures(version.name, version.version)

    def document(self, version: ModelVersion) -> dict[str, Any]:
        """Return a version with its signatures, as the management API shows it."""
        try:
            signatures = self.signatures(version)
        except ArtifactCorruptError:
            signatures = ()  # unreadable signatures count as absent
        return {
            **msgspec.to_builtins(version),
            "reference": version.reference,
            "runs_code": version.executes_code,
            "signatures": msgspec.to_builtins(signatures),
        }

    def add_signature(
        self, name: str, version: str, signature: VersionSignature
    ) -> tuple[VersionSignature, ...]:
        """Store a signature, replacing an older one by the same key; return all signatures.

        Raises:
            InvalidArgumentError: The signature is not of this version.
            VersionNotFoundError: The version does not exist.
            FailedPreconditionError: The version has `MAX_SIGNATURES` signatures already.
        """
        from headrace.registry.signing import is_valid, key_of  # noqa: PLC0415  # 50 ms that few need

        check_version(version)
        with storage_errors(f"cannot sign {name}:{version}", self.home):
            self._begin_change(name)
            stored = self.get(f"{name}:{version}")
            if not is_valid(stored, signature):
                msg = f"the signature does not match {stored.reference} as stored in this registry"
                raise InvalidArgumentError(msg)
            key = key_of(signature)

            def merge(
                existing_signatures: tuple[VersionSignature, ...],
            ) -> tuple[VersionSignature, ...]:
                others = [other for other in existing_signatures if key_of(other) != key]
                if len(others) >= MAX_SIGNATURES:
                    msg = f"{stored.reference} has {len(others)} signatures, and more are not kept"
                    raise FailedPreconditionError(msg)
                return (*others, signature)

            if self._mirror is not None:
                return self._mirror.change_signatures(stored, merge)
            with self._locked():
                signatures = merge(self._index.signatures(stored.name, stored.version))
                self._index.write_signatures(stored.name, stored.version, signatures)
        return signatures

    def verify(self, version: ModelVersion) -> None:
        """Verify the stored artifact against its digest; a damaged mirror copy is fetched again.

        Raises:
            ArtifactCorruptError: It differs; the message names each file with the expected and
                actual digests.
        """
        path = self.path(version)
        location = f"{version.reference} ({path})"
        try:
            check_content(path, version.files, version.digest, location=location)
        except ArtifactCorruptError:
            if self._mirror is None:
                raise
            with storage_errors(f"cannot fetch {version.reference}", self.home):
                self._mirror.pull(version.digest)
            check_content(path, version.files, version.digest, location=location)

    @contextmanager
    def snapshot(self, prepare: Callable[[], None]) -> Iterator[Path]:
        """Yield a consistent copy of the registry, laid out as in a home.

        Content is hard-linked, so that `gc` cannot delete it meanwhile. Content that only the
        shared store holds is skipped.

        Args:
            prepare: Called under the registry's lock, before the copy.

        Raises:
            ArtifactCorruptError: An index file cannot be read, or content is missing.
        """
        with self._artifacts.staging() as folder:
            with self._locked(), storage_errors("cannot copy the registry", self.home):
                prepare()
                self._index.copy_to(folder / "registry")
                versions, problems = self._index.read_all(None)
                for problem in problems:
                    raise problem
                for version in {version.digest: version for version in versions}.values():
                    stored = self._artifacts.path(version.digest)
                    if stored.is_dir():
                        target = folder / "artifacts" / "sha256" / stored.name
                        self._artifacts.link(version.digest, target)
                    elif not bound_to(self.home):
                        message = f"the content of {version.reference} is not in {stored}"
                        raise ArtifactCorruptError(message)
            yield folder

    def remove(self, name: str, version: str, in_use: Collection[str] = ()) -> ModelVersion:
        """Remove a version from the index; `gc` frees its space. Its number is never reused.

        Args:
            in_use: References (`NAME:VERSION`) and digests that are being served.

        Raises:
            VersionNotFoundError: The version does not exist.
            FailedPreconditionError: The version is in use.
        """
        check_version(version)
        with storage_errors(f"cannot remove {name}:{version}", self.home):
            self._begin_change(name)
            stored = self.get(f"{name}:{version}")
            if stored.reference in in_use:
                msg = f"{stored.reference} is being served; remove it from its endpoint first"
                raise FailedPreconditionError(msg)
            if self._mirror is not None:
                self._mirror.shared.index.remove(stored)
            with self._locked():
                if self._index.contains(
                    stored.name, stored.version
                ):  # another process may have removed it
                    self._index.remove(stored)
        return stored

    def gc(
        self,
        in_use: Collection[str] = (),
        *,
        temporary_age_s: float = TEMPORARY_AGE_S,
        grace_s: float = GRACE_S,
    ) -> GarbageReport:
        """Delete unreferenced artifacts and leftovers of crashed pushes.

        Args:
            in_use: Digests to keep although unreferenced; other strings are ignored.
            grace_s: How long the shared store keeps content after its last push, as another host
                may soon refer to it.

        Raises:
            ArtifactCorruptError: An index file cannot be read, so its digest is unknown.
        """
        swept: list[Digest] = []
        swept_bytes = 0
        self._begin_change()
        if self._mirror is not None:
            list_referenced = self._mirror.referenced
            swept, swept_bytes = self._mirror.shared.sweep(list_referenced, grace_s)
        with storage_errors("cannot clean up", self.home), self._locked():
            versions, problems = self._index.read_all(None)
            if problems:
                msg = f"nothing was deleted: {problems[0]}"
                raise ArtifactCorruptError(msg)
            referenced = {version.digest for version in versions}.union(map(Digest, in_use))
            unreferenced = tuple(d for d in self._artifacts.digests() if d not in referenced)
            freed = self._artifacts.delete(unreferenced)
            before = self._clock.now() - temporary_age_s
            temporary, more = self._artifacts.delete_temporary(before=before)
        return GarbageReport(
            artifacts=tuple(sorted({*unreferenced, *swept})),
            temporary=temporary,
            freed_bytes=freed + more + swept_bytes,
        )

    def _begin_change(self, name: str | None = None) -> None:
        """Refresh from the shared store before a change.

        Raises:
            FailedPreconditionError: The home mirrors a store, and `--artifacts` is missing.
        """
        self._check_own()
        if self._mirror is not None:
            self._mirror.refresh(name)

    def _check_own(self) -> None:
        """Refuse to change a mirror without its store.

        Raises:
            FailedPreconditionError: The home mirrors a store, and `--artifacts` is missing.
        """
        if self._mirror is None and (url := bound_to(self.home)):
            msg = (
                f"{self.home} mirrors the models in {url}: only commands with `--artifacts {url}`, "
                "such as `headrace models push`, can change them"
            )
            raise FailedPreconditionError(msg)

    def _check_store_answers(self) -> None:
        """Raise the store's error instead of 'not found' while the store is unavailable."""
        if self._mirror is not None and self._mirror.unavailable is not None:
            raise self._mirror.unavailable

    def _follow(self, name: str | None) -> Problems:
        return [] if self._mirror is None else self._mirror.try_refresh(name)

    def _keep_shared(self, version: ModelVersion) -> None:
        """Upload content that the shared store has lost."""
        if self._mirror is not None:
            content = Content(
                digest=version.digest, size_bytes=version.size_bytes, files=version.files
            )
            path = self._artifacts.path(version.digest) / version.filename
            self._mirror.shared.ensure(content, path, version.filename)

    def _locked(self) -> AbstractContextManager[None]:
        directory = self.home / "registry"
        directory.mkdir(parents=True, exist_ok=True)
        return exclusive(directory / ".lock", timeout_s=LOCK_TIMEOUT_S)

    def _same(
        self, name: str, digest: Digest, runtime: str, labels: Mapping[str, tuple[str, ...]]
    ) -> ModelVersion | None:
        """Return the newest version with this content, if its artifact is intact."""
        versions, _ = self._index.read_all(name)
        for version in reversed(versions):
            path = self._artifacts.path(version.digest) / version.filename
            if (
                version.digest == digest
                and runtime in ("", version.runtime)
                and dict(version.labels) == dict(labels)
                and not differences(path, version.files)
            ):
                return version
        return None

    def _publish(self, staged: Path, draft: ModelVersion) -> ModelVersion:
        """Publish the staged version, or return an equal one that was published meanwhile."""
        if self._mirror is not None:
            return self._publish_shared(self._mirror, staged, draft)
        with self._locked():
            # Move the artifact into place unless an intact one exists. Versions that share
            # content also share its file name; a damaged artifact is replaced.
            versions, _ = self._index.read_all(None)
            sharing = (version for version in versions if version.digest == draft.digest)
            filename = next((version.filename for version in sharing), draft.filename)
            directory = self._artifacts.path(draft.digest)
            if differences(directory / filename, draft.files):
                if filename != draft.filename:
                    move(staged / draft.filename, staged / filename, durable=False)
                self._artifacts.publish(staged, draft.digest)
            same = self._same(draft.name, draft.digest, draft.runtime, draft.labels)
            if same is not None:
                return same
            number = self._index.next_number(draft.name)
            version = msgspec.structs.replace(draft, version=str(number), filename=filename)
            self._index.write(version)
            return version

    def _publish_shared(self, mirror: Mirror, staged: Path, draft: ModelVersion) -> ModelVersion:
        """Publish to the shared store, then copy the result to this home."""

        def same(listed: UsedNumbers) -> ModelVersion | None:
            mirror.copy(draft.name, listed)
            versions, _ = self._index.read_all(draft.name)
            identity = (draft.digest, draft.runtime, dict(draft.labels))
            identical = (v for v in versions if (v.digest, v.runtime, dict(v.labels)) == identity)
            return next(identical, None)

        version = mirror.shared.publish(draft, staged / draft.filename, same)
        if version.filename != draft.filename:
            move(staged / draft.filename, staged / version.filename, durable=False)
        with self._locked():
            path = self._artifacts.path(version.digest) / version.filename
            if differences(path, version.files):
                self._artifacts.publish(staged, version.digest)
            self._index.write(version)
        return version
