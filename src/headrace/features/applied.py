"""Which definitions are in force in a home? A checked copy of `features.yaml`, replaced at once."""

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.features.definitions import Definitions
from headrace.features.feast.importing import LeftOut, import_definitions
from headrace.features.feast.repository import read_repository
from headrace.features.spec import (
    FeaturesSpec,
    checked,
    parse_definitions,
    read_text,
    with_absolute_sources,
)

_APPLIED: Final = Path("features", "definitions.json")
_ONLINE: Final = Path("features", "online.db")
_PRIVATE: Final = 0o700
_SHOWN: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionChange:
    """A view or service that is not as it was: `created`, `changed` or `removed`.

    Records of a view whose schema changed are not read any more: it has to be materialized.
    """

    kind: str
    name: str
    what: str
    has_other_schema: bool = False


def apply_definitions(path: Path, home: Path) -> list[DefinitionChange]:
    """Put what the file at `path` defines in force; what changed by that.

    Raises:
        SpecError: With every mistake, its place and line; nothing changed.
        FailedPreconditionError: The file cannot be read, or the home not be written.
    """
    return _put_in_force(checked(read_text(path)), path.absolute().parent, home)


def apply_feast(repo: Path, home: Path) -> tuple[list[DefinitionChange], Sequence[LeftOut]]:
    """Put what a repository of Feast's defines in force; what changed, and what was left out.

    Raises:
        SpecError: Something of it fits no definition of ours; nothing changed.
        FailedPreconditionError: The repository cannot be read, or the home not be written.
    """
    repository = read_repository(repo)
    found = import_definitions(repository)
    if not found.document["feature_views"]:
        why = "; ".join(f"{one.kind} {one.name}: {one.reason}" for one in found.left_out[:_SHOWN])
        message = f"{repository.path} has no feature view of project {repository.project!r} to take"
        raise FailedPreconditionError(f"{message} ({why})" if why else message)
    return _put_in_force(checked(found.document), repository.path, home), found.left_out


def _put_in_force(spec: FeaturesSpec, base_dir: Path, home: Path) -> list[DefinitionChange]:
    text = with_absolute_sources(spec, base_dir).model_dump_json(indent=2)
    try:
        before = _read(home)
    except FailedPreconditionError:
        before = None  # damaged: replaced by what is right
    after = parse_definitions(text, base_dir=home)
    try:
        _write(home / _APPLIED, text)
    except OSError as error:
        message = f"cannot write {home / _APPLIED}: {error.strerror}"
        raise FailedPreconditionError(message) from error
    return list(_changes(before, after))


def applied_definitions(home: Path) -> Definitions:
    """What is in force in a home; FailedPreconditionError if nothing is."""
    found = _read(home)
    if found is None:
        message = f"{home} has no features; `headrace features apply features.yaml` defines them"
        raise FailedPreconditionError(message)
    return found


def default_online_store(home: Path) -> str:
    """The URL of the store that a home has by itself: Feast's, if what is in force says so."""
    try:
        text = (home / _APPLIED).read_bytes()
        feast_repo = msgspec.json.decode(text, type=_StoreOf).feast_repo
    except (OSError, msgspec.MsgspecError):
        feast_repo = None  # nothing is in force, or it is damaged, which whoever reads it says
    return (
        f"sqlite:///{home.absolute() / _ONLINE}" if feast_repo is None else f"feast://{feast_repo}"
    )


class _StoreOf(msgspec.Struct):
    """What is read of definitions to know where their values stand."""

    feast_repo: str | None = None


def _read(home: Path) -> Definitions | None:
    path = home / _APPLIED
    if not path.exists():
        return None
    try:
        return parse_definitions(read_text(path), base_dir=home)
    except InvalidArgumentError as error:
        message = f"{path} is damaged; run `headrace features apply` again ({error})"
        raise FailedPreconditionError(message) from error


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _changes(before: Definitions | None, after: Definitions) -> Iterator[DefinitionChange]:
    old_views = {} if before is None else before.views
    old_services = {} if before is None else before.services
    for name, view in after.views.items():
        old = old_views.get(name)
        if old is None:
            yield DefinitionChange(kind="view", name=name, what="created")
        elif old != view:
            is_other = old.schema_hash != view.schema_hash
            yield DefinitionChange(
                kind="view", name=name, what="changed", has_other_schema=is_other
            )
    for name, service in after.services.items():
        before_it = old_services.get(name)
        if before_it is None:
            yield DefinitionChange(kind="service", name=name, what="created")
        elif before_it != service:
            is_other = before_it.schema_hash != service.schema_hash
            yield DefinitionChange(
                kind="service", name=name, what="changed", has_other_schema=is_other
            )
    for kind, old_names, new_names in (
        ("view", old_views.keys(), after.views.keys()),
        ("service", old_services.keys(), after.services.keys()),
    ):
        for name in old_names:
            if name not in new_names:
                yield DefinitionChange(kind=kind, name=name, what="removed")
