"""Definitions in force in a home: a checked copy of `features.yaml`, replaced in one step."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import write_atomic
from headrace.core.variables import url_filled_in
from headrace.features.definitions import (
    Definitions,
    FeatureService,
    FeatureView,
    OnDemandView,
)
from headrace.features.feast.importing import LeftOut, import_definitions
from headrace.features.feast.repository import read_repository
from headrace.features.on_demand import OnDemandFunction
from headrace.features.spec import (
    check_code_allowed,
    checked,
    parse_definitions,
    read_text,
    self_contained,
)
from headrace.features.spec_models import DefinitionsSpec

ONLINE_STORE_VARIABLE: Final = "HEADRACE_ONLINE_STORE"
APPLIED: Final = Path("features", "definitions.json")
_ONLINE: Final = Path("features", "online", "online.db")
"""In its own folder: processes that write it may also create files beside it."""
_ONLINE_BEFORE: Final = Path("features", "online.db")
_PRIVATE: Final = 0o700
_SHOWN: Final = 5

_Defined = FeatureView | OnDemandView | FeatureService


@dataclass(frozen=True, slots=True, kw_only=True)
class DefinitionChange:
    """A view or service that `apply` created, changed or removed.

    Records of a view whose schema changed are no longer read: the view must be materialized again.
    """

    kind: str
    """`view`, `on-demand view` or `service`."""

    name: str

    what: str
    """`created`, `changed` or `removed`."""

    has_other_schema: bool = False
    """Whether the schema hash changed."""


def apply_definitions(
    path: Path, home: Path, *, allow_code: bool = False
) -> list[DefinitionChange]:
    """Apply the definitions in the file at `path` and return the changes.

    The code of on-demand views is stored with them: the applied code is what runs.

    Args:
        allow_code: Whether on-demand views may run their author's code. The code runs here once,
            with the default values of its inputs.

    Raises:
        SpecError: The file has mistakes, each listed with location and line; nothing changed.
        FailedPreconditionError: The file cannot be read, the home cannot be written, or code is not
            allowed.
        UnsupportedModelError: The function of an on-demand view cannot be loaded.
        RuntimeFailedError: The function fails on its declared inputs, or returns something else.
    """
    spec = checked(read_text(path))
    check_code_allowed(spec, allow_code=allow_code)
    return _activate(self_contained(spec, path.absolute().parent), home)


def apply_feast(repo: Path, home: Path) -> tuple[list[DefinitionChange], Sequence[LeftOut]]:
    """Apply the definitions of a Feast repository; return the changes and what was left out.

    Raises:
        SpecError: A definition of the repository is not supported; nothing changed.
        FailedPreconditionError: The repository cannot be read, or the home cannot be written.
    """
    repository = read_repository(repo)
    imported = import_definitions(repository)
    if not imported.document["feature_views"]:
        examples = "; ".join(
            f"{item.kind} {item.name}: {item.reason}" for item in imported.left_out[:_SHOWN]
        )
        message = (
            f"{repository.path} has no supported feature view in project {repository.project!r}"
        )
        raise FailedPreconditionError(f"{message} ({examples})" if examples else message)
    spec = self_contained(checked(imported.document), repository.path)
    return _activate(spec, home), imported.left_out


def _activate(spec: DefinitionsSpec, home: Path) -> list[DefinitionChange]:
    text = spec.model_dump_json(indent=2)
    try:
        before = _read(home)
    except FailedPreconditionError:
        before = None  # damaged: the new definitions replace it
    after = _parsed(text, home)
    for view in after.on_demand_views.values():
        OnDemandFunction(view).probe()
    try:
        for folder in (home, (home / APPLIED).parent, (home / _ONLINE).parent):
            folder.mkdir(parents=True, exist_ok=True, mode=_PRIVATE)  # mode: last folder only
        write_atomic(home / APPLIED, text.encode())
    except OSError as error:
        message = f"cannot write {home / APPLIED}: {error.strerror}"
        raise FailedPreconditionError(message) from error
    return list(_changes(before, after))


def applied_definitions(home: Path) -> Definitions:
    """Return the definitions applied in a home; raise FailedPreconditionError without any."""
    definitions = _read(home)
    if definitions is None:
        message = f"{home} has no features; `headrace features apply features.yaml` defines them"
        raise FailedPreconditionError(message)
    return definitions


def default_online_store(home: Path) -> str:
    """Return the URL of a home's default store; Feast's, if the definitions name a repository."""
    try:
        text = (home / APPLIED).read_bytes()
        feast_repo = msgspec.json.decode(text, type=_StoreOf).feast_repo
    except (OSError, *UNDECODABLE):
        feast_repo = None  # no definitions, or damaged ones, which the reader reports
    if feast_repo is not None:
        return f"feast://{feast_repo}"
    before = home.absolute() / _ONLINE_BEFORE
    return f"sqlite:///{before if before.exists() else home.absolute() / _ONLINE}"


class _StoreOf(msgspec.Struct):
    """The part of the definitions that names the store of their values."""

    feast_repo: str | None = None


def online_store_url(home: Path) -> str:
    """Return the store URL for processes of a home: from the environment, else the default."""
    return url_filled_in(online_store_reference(home))


def online_store_reference(home: Path) -> str:
    """Return the store URL to record: a variable by its name, as its value may hold a password."""
    if os.environ.get(ONLINE_STORE_VARIABLE):
        return f"${{{ONLINE_STORE_VARIABLE}}}"
    return default_online_store(home)


def _read(home: Path) -> Definitions | None:
    path = home / APPLIED
    if not path.exists():
        return None
    try:
        return _parsed(path.read_bytes(), home)
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error
    except (InvalidArgumentError, *UNDECODABLE) as error:
        message = f"{path} is damaged; run `headrace features apply` again ({error})"
        raise FailedPreconditionError(message) from error


def _parsed(text: str | bytes, home: Path) -> Definitions:
    # As JSON, not as YAML: code may hold what YAML cannot, and a file with it may be long.
    document = msgspec.json.decode(text, type=dict[str, Any])
    return parse_definitions(document, base_dir=home, allow_code=True)


def _changes(before: Definitions | None, after: Definitions) -> Iterator[DefinitionChange]:
    old = before or Definitions(entities={}, views={}, services={})
    kinds: tuple[tuple[str, Mapping[str, _Defined], Mapping[str, _Defined]], ...] = (
        ("view", old.views, after.views),
        ("on-demand view", old.on_demand_views, after.on_demand_views),
        ("service", old.services, after.services),
    )
    for kind, previous, now in kinds:
        for name, definition in now.items():
            if name not in previous:
                yield DefinitionChange(kind=kind, name=name, what="created")
            elif previous[name] != definition:
                is_other = previous[name].schema_hash != definition.schema_hash
                yield DefinitionChange(
                    kind=kind, name=name, what="changed", has_other_schema=is_other
                )
        for name in previous:
            if name not in now:
                yield DefinitionChange(kind=kind, name=name, what="removed")
