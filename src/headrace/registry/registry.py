"""Model versions: pushed once, never changed, found by name and number.

    artifacts/sha256/DIGEST/FILENAME    content, shared by versions that are equal
    artifacts/tmp/                      pushes under way, and what crashed ones left
    registry/NAME/VERSION.json          what is known about a version

A version exists from the moment its index file does, which is written last and in one step: a
crash at any point leaves at worst an artifact that nobody refers to, which `gc` takes away.

With a shared store the same is true there, and the home is a copy of it (`mirror`).
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
"""A home that is made here holds state and sockets later."""
TEMPORARY_AGE_S: Final = 86_400.0
"""How long a temporary directory stays untouched before `gc` takes it for a crashed push's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GarbageReport:
    """What `Registry.gc` deleted."""

    artifacts: tuple[Digest, ...]
    temporary: int
    freed_bytes: int

    def __str__(self) -> str:
        return (
            f"{len(self.artifacts)} artifacts and {self.temporary} temporary directories, "
            f"{self.freed_bytes} bytes"
        )


class Registry:
    """The model versions under one home directory.

    Safe to use from several threads and processes at once. Opening creates nothing.

    Args:
        home: Where state lives (`HEADRACE_HOME`).
        inspect: Needed to push; `headrace.runtimes.inspect_model` in production.
        shared: Where the versions of several homes are; None for a home that has its own.
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
        """Store a model as the next version of `name`; the model is proved to load first.

        The same content, runtime and labels pushed again under the same name are the same version,
        which is returned.

        Args:
            path: A file, or a directory of which every file is stored.
            runtime: Empty detects it.
            allow_code: Whether the model may be of a format that runs its author's code, here and
                now.
            source: Where the model comes from; empty for `path`.
            by: Who pushes; empty for this process's user.
            owner: The principal of the management API who pushes; empty on the machine itself.
            inspect: Instead of the registry's own.
            beneath: A directory above `path` that no link may leave on the way there.
            labels: For an output's name, its class names.
            metadata: Anything worth keeping beside the version.
            progress: Called with the bytes stored so far and in all.

        Raises:
            UnsupportedModelError: No runtime can serve the model.
            CodeNotAllowedError: It would run code; nothing of it was run or stored.
            InvalidArgumentError: The name is not allowed, or the path cannot be stored.
            FailedPreconditionError: The disk is full or may not be written.
        """
        check_name(name)
        inspect = inspect or self._inspect
        if inspect is None:
            msg = "this registry was opened for reading: pass `inspect_model` of headrace.runtimes"
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
                    metadata=dict(metadata or {}),
                )
                return self._publish(staged, draft)

    def get(self, reference: str) -> ModelVersion:
        """The version that `NAME:VERSION` names, or the newest one of `NAME`.

        Raises:
            VersionNotFoundError: There is none; the message lists those there are.
            ArtifactCorruptError: Its index file cannot be read.
            UnavailableError: Only the shared store can know, and it does not answer.
        """
        name, colon, version = reference.partition(":")
        check_name(name)
        if self._mirror is not None:
            # An old number is as good as ever if the store is away; which is newest only it knows.
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
        """All versions, or those of one name, by name and number.

        A damaged index file is left out; see `problems`.
        """
        self._follow(name)
        versions, _ = self._index.read_all(name)
        return versions

    def owners(self, name: str) -> frozenset[str]:
        """The principals who pushed the versions that there are of a name."""
        return frozenset(version.owner for version in self._index.read_all(name)[0])

    def problems(self, name: str | None = None) -> Problems:
        """The index files that cannot be read, each as the error that says why."""
        damaged = self._follow(name)
        _, problems = self._index.read_all(name)
        return [*damaged, *problems]

    def path(self, version: ModelVersion) -> Path:
        """The file or directory that a runtime loads; fetched if only the shared store has it.

        Raises:
            ArtifactCorruptError: It is not there.
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
        """Fetch an artifact from the shared store if there is one and it is not here.

        Raises:
            NotFoundError: The store does not have it.
            ArtifactCorruptError: It is damaged there.
            UnavailableError: The store does not answer.
        """
        if self._mirror is not None and not self._artifacts.path(digest).exists():
            with storage_errors(f"cannot fetch {digest}", self.home):
                self._mirror.pull(digest)

    def signatures(self, version: ModelVersion) -> tuple[VersionSignature, ...]:
        """Who signed a version, oldest first; whether that is right is another question.

        Raises:
            ArtifactCorruptError: They cannot be read.
        """
        return self._index.signatures(version.name, version.version)

    def document(self, version: ModelVersion) -> dict[str, Any]:
        """Return a version with its signatures, as the management API shows it."""
        try:
            signatures = self.signatures(version)
        except ArtifactCorruptError:
            signatures = ()  # what cannot be read vouches for nothing
        return {
            **msgspec.to_builtins(version),
            "reference": version.reference,
            "runs_code": version.executes_code,
            "signatures": msgspec.to_builtins(signatures),
        }

    def add_signature(
        self, name: str, version: str, signature: VersionSignature
    ) -> tuple[VersionSignature, ...]:
        """Keep a signature of a version; all there are then. A key's newer one replaces its older.

        Raises:
            InvalidArgumentError: It is none of this version.
            VersionNotFoundError: There is no such version.
            FailedPreconditionError: There are too many.
        """
        from headrace.registry.signing import is_valid, key_of  # noqa: PLC0415  # 50 ms that few need

        check_version(version)
        with storage_errors(f"cannot sign {name}:{version}", self.home):
            self._begin_change(name)
            stored = self.get(f"{name}:{version}")
            if not is_valid(stored, signature):
                msg = f"this is no signature of {stored.reference} as it is stored here"
                raise InvalidArgumentError(msg)
            key = key_of(signature)

            def merge(there: tuple[VersionSignature, ...]) -> tuple[VersionSignature, ...]:
                others = [other for other in there if key_of(other) != key]
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
        """Prove that the stored artifact is what was pushed; a copy that is not is fetched again.

        Raises:
            ArtifactCorruptError: It is not; the message names each file, the digest that was
                expected and the one that was found.
        """
        path = self.path(version)
        where = f"{version.reference} ({path})"
        try:
            check_content(path, version.files, version.digest, where=where)
        except ArtifactCorruptError:
            if self._mirror is None:
                raise
            with storage_errors(f"cannot fetch {version.reference}", self.home):
                self._mirror.pull(version.digest)
            check_content(path, version.files, version.digest, where=where)

    @contextmanager
    def snapshot(self, prepare: Callable[[], None]) -> Iterator[Path]:
        """A directory with the registry of one moment, laid out as in a home, for the block.

        Content is hard-linked, so that no `gc` takes it away meanwhile. Content that only a shared
        store has is left out.

        Args:
            prepare: Runs at that moment, while nobody pushes, removes or collects.

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
        """Take a version out of the index; `gc` frees its space. Its number is never given again.

        Args:
            in_use: References (`NAME:VERSION`) and digests that are being served.

        Raises:
            VersionNotFoundError: There is none.
            FailedPreconditionError: It is in use.
        """
        check_version(version)
        with storage_errors(f"cannot remove {name}:{version}", self.home):
            self._begin_change(name)
            stored = self.get(f"{name}:{version}")
            if stored.reference in in_use:
                msg = f"{stored.reference} is being served; take it out of its endpoint first"
                raise FailedPreconditionError(msg)
            if self._mirror is not None:
                self._mirror.shared.index.remove(stored)
            with self._locked():
                if self._index.contains(stored.name, stored.version):  # nobody was faster
                    self._index.remove(stored)
        return stored

    def gc(
        self,
        in_use: Collection[str] = (),
        *,
        temporary_age_s: float = TEMPORARY_AGE_S,
        grace_s: float = GRACE_S,
    ) -> GarbageReport:
        """Delete artifacts that no version refers to, and what crashed pushes left.

        Args:
            in_use: Digests to keep although no version refers to them; references do no harm.
            grace_s: How long the shared store keeps content after it was pushed last: another host
                may be about to refer to it.

        Raises:
            ArtifactCorruptError: An index file cannot be read, so what it refers to is not known.
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
            doomed = tuple(d for d in self._artifacts.digests() if d not in referenced)
            freed = self._artifacts.delete(doomed)
            before = self._clock.now() - temporary_age_s
            temporary, more = self._artifacts.delete_temporary(before=before)
        return GarbageReport(
            artifacts=tuple(sorted({*doomed, *swept})),
            temporary=temporary,
            freed_bytes=freed + more + swept_bytes,
        )

    def _begin_change(self, name: str | None = None) -> None:
        """Know what the shared store has; refuse to go apart from it.

        Raises:
            FailedPreconditionError: This home is a copy of a store, which was not named.
        """
        self._check_own()
        if self._mirror is not None:
            self._mirror.refresh(name)

    def _check_own(self) -> None:
        """Refuse to change a copy behind the back of its store.

        Raises:
            FailedPreconditionError: This home is a copy of a store, which was not named.
        """
        if self._mirror is None and (url := bound_to(self.home)):
            msg = (
                f"{self.home} is a copy of the models in {url}, which only commands with "
                f"`--artifacts {url}` change; `headrace models push` is one"
            )
            raise FailedPreconditionError(msg)

    def _check_store_answers(self) -> None:
        """Do not say that something is nowhere if the store could not be asked."""
        if self._mirror is not None and self._mirror.unavailable is not None:
            raise self._mirror.unavailable

    def _follow(self, name: str | None) -> Problems:
        return [] if self._mirror is None else self._mirror.try_refresh(name)

    def _keep_shared(self, version: ModelVersion) -> None:
        """Heal the shared store if it has lost content that is whole here."""
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
        """The newest version with this content, if its artifact is still whole."""
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
        """Make the staged version visible, unless somebody else was first with the same."""
        if self._mirror is not None:
            return self._publish_shared(self._mirror, staged, draft)
        with self._locked():
            # Move the artifact to its place, unless a whole one is there. Versions that share
            # content share the name of its file, too, and a damaged artifact is healed.
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
        """The same for all homes of a store: it decides, then this home has a copy."""

        def same(listed: UsedNumbers) -> ModelVersion | None:
            mirror.copy(draft.name, listed)
            versions, _ = self._index.read_all(draft.name)
            identity = (draft.digest, draft.runtime, dict(draft.labels))
            alike = (v for v in versions if (v.digest, v.runtime, dict(v.labels)) == identity)
            return next(alike, None)

        version = mirror.shared.publish(draft, staged / draft.filename, same)
        if version.filename != draft.filename:
            move(staged / draft.filename, staged / version.filename, durable=False)
        with self._locked():
            path = self._artifacts.path(version.digest) / version.filename
            if differences(path, version.files):
                self._artifacts.publish(staged, version.digest)
            self._index.write(version)
        return version
