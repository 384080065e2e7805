"""Spec documents, former generations and revision ids for changes of the desired state.

Ids of revisions once had the home's path in them. A new id at the next apply
would replace all replicas, and start rollouts, without a change. So an unchanged revision keeps its
id.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from headrace.control.model.desired import (
    LAYOUT,
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    same_endpoint,
    with_id,
)
from headrace.control.model.records import EndpointGeneration, RolloutRecord
from headrace.control.state.store import Store
from headrace.core import (
    Digest,
    EndpointNotFoundError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.core.feature_settings import SQLITE
from headrace.core.spec.parse import (
    SpecError,
    SpecMistake,
    SystemSpec,
    is_model_path,
    parse_spec,
)
from headrace.registry import Registry
from headrace.rollout.state import RolloutPhase


def with_entry(
    document: Mapping[str, Any], name: str, entry: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return `document` with the entry of endpoint `name` replaced, added or removed (None).

    The pod settings of a removed endpoint are removed too.
    """
    pods = {} if entry is not None else {name: None}
    return with_entries(document, {name: entry}, pods)


def with_entries(
    document: Mapping[str, Any],
    entries: Mapping[str, Mapping[str, Any] | None],
    pods: Mapping[str, Mapping[str, Any] | None],
) -> dict[str, Any]:
    """Return `document` with these endpoints' entries and pod settings set, or removed (None)."""
    new = dict(entries)
    listed = []
    for old in document.get("endpoints", ()):
        name = str(old.get("name")) if isinstance(old, Mapping) else ""
        entry = new.pop(name, None) if name in entries else old
        if entry is not None:
            listed.append(entry)
    listed += [dict(entry) for entry in new.values() if entry is not None]
    changed = {"version": 1, **document, "endpoints": listed}
    block = document.get("kubernetes") or {}
    own = {**(block.get("endpoints") or {}), **pods}
    own = {name: settings for name, settings in own.items() if settings is not None}
    if own != (block.get("endpoints") or {}):
        rest = {key: value for key, value in block.items() if key != "endpoints"}
        changed["kubernetes"] = rest | ({"endpoints": own} if own else {})
        if not changed["kubernetes"]:
            del changed["kubernetes"]
    return changed


def pods_entry(document: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """Return the pod settings of endpoint `name`; None if it has the defaults."""
    settings: dict[str, Any] | None = (
        (document.get("kubernetes") or {}).get("endpoints") or {}
    ).get(name)
    return settings


_ENTRY: Final = re.compile(r"endpoints\[(\d+)\]")


def mistakes_by_endpoint(
    mistakes: Iterable[SpecMistake], document: Mapping[str, Any]
) -> dict[str, list[SpecMistake]]:
    """Return the mistakes of each endpoint; empty if any belongs to no named endpoint."""
    wrong: dict[str, list[SpecMistake]] = {}
    own_pods = (document.get("kubernetes") or {}).get("endpoints") or {}
    for mistake in mistakes:
        if (match := _ENTRY.match(mistake.place)) is not None:
            entry = next(islice(document["endpoints"], int(match[1]), None), None)
            name = entry.get("name") if isinstance(entry, Mapping) else None
        else:
            path = f"{mistake.place.removeprefix(_PODS)}."
            is_pods = mistake.place.startswith(_PODS)
            name = next((n for n in own_pods if is_pods and path.startswith(f"{n}.")), None)
        if not isinstance(name, str):
            return {}
        wrong.setdefault(name, []).append(mistake)
    return wrong


_PODS: Final = "kubernetes.endpoints."


def usable_spec(document: Mapping[str, Any], stored: Mapping[str, Any]) -> SystemSpec:
    """Return the spec of a document without endpoints that have mistakes.

    Where anything else is wrong, the stored spec is returned.
    """
    while True:
        try:
            return parse_spec(document, in_force=stored)
        except SpecError as error:
            wrong = dict.fromkeys(mistakes_by_endpoint(error.mistakes, document))
            if not wrong:
                return parse_spec(stored, in_force=stored)
            document = with_entries(document, wrong, wrong)


def entry_of_source(
    served: DesiredEndpoint, *, model: str, version: str, upstream: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the spec entry of an endpoint that serves another model, version or upstream."""
    if upstream is not None:
        newest = max(int(arm.revision.version) for arm in served.arms)
        return {"upstream": dict(upstream), "version": version or str(newest + 1)}
    if model:
        return {"model": f"{model}:{version}" if version and ":" not in model else model}
    if not version:
        raise InvalidArgumentError("name the version to roll out, or a model or an upstream")
    line = max(served.arms, key=lambda arm: arm.weight).revision
    if line.upstream is not None or is_model_path(line.model):
        message = f"'{line.model}' has no versions in the registry; name a model instead"
        raise InvalidArgumentError(message)
    return {"model": f"{line.model.partition(':')[0]}:{version}"}


def reloads_of(desired: DesiredState) -> dict[str, int]:
    """Return the reload count of each endpoint."""
    return {e.name: max(arm.revision.reload for arm in e.arms) for e in desired.endpoints if e.arms}


def only_entry(spec: SystemSpec, name: str) -> SystemSpec:
    """Return `spec` with only the entry of endpoint `name`, or else all possible repositories."""
    own = tuple(entry for entry in spec.endpoints if entry.name == name)
    others = tuple(e for e in spec.endpoints if e.model is not None and is_model_path(e.model))
    return spec.model_copy(update={"endpoints": own or others})


_MAX_SEARCHED: Final = 1000


async def former(store: Store, name: str, generation: int | None) -> EndpointGeneration:
    """Return a generation of endpoint `name`; None: the newest that served something different.

    Raises:
        NotFoundError: The generation does not exist.
        FailedPreconditionError: The endpoint never served anything different.
    """
    if generation is None:
        return await _served_before(store, name)
    stored = await store.generation(name, generation)
    if stored is None:
        newest = await store.history(name, limit=1)
        there = f"the newest is {newest[0].generation}" if newest else "the endpoint does not exist"
        raise NotFoundError(f"endpoint '{name}' has no generation {generation}; {there}")
    return stored


async def _served_before(store: Store, name: str) -> EndpointGeneration:
    """Return the newest generation that served something different from the desired endpoint.

    Generations that a rollout held back never served, so they are skipped.
    """
    history = await store.history(name, limit=_MAX_SEARCHED)
    if not history:
        raise EndpointNotFoundError(name)
    rollouts = await store.rollouts(name, limit=_MAX_SEARCHED)
    held_back = {
        held
        for record in rollouts
        if record.state.phase is not RolloutPhase.PROMOTED
        for held in record.generations
    }
    newest = history[0]
    for entry in history[1:]:
        is_same = same_endpoint(entry.endpoint, newest.endpoint)
        is_other = newest.generation in held_back or not is_same
        if is_other and entry.generation not in held_back:
            return entry
    message = f"endpoint '{name}' never served anything else; there is nothing to undo"
    raise FailedPreconditionError(message)


def check_there(endpoint: DesiredEndpoint) -> None:
    """Raise FailedPreconditionError if the files of a model are missing."""
    for arm in endpoint.arms:
        settings = arm.revision.settings
        if arm.revision.upstream is None and not Path(settings.path).exists():
            message = f"model {arm.revision.model} of that generation is gone from the registry"
            raise FailedPreconditionError(message)


def with_known_ids(
    endpoints: Iterable[DesiredEndpoint],
    desired: DesiredState,
    rollouts: Iterable[RolloutRecord] = (),
) -> tuple[DesiredEndpoint, ...]:
    """Return `endpoints` with the revision ids that `desired` and `rollouts` already use."""
    revisions: dict[str, list[Revision]] = {}
    previous = (state for record in rollouts for state in (record.source, record.target))
    for endpoint in (*desired.endpoints, *previous):
        revisions.setdefault(endpoint.name, []).extend(arm.revision for arm in endpoint.arms)
    return tuple(
        msgspec.structs.replace(
            endpoint, arms=tuple(_arms(endpoint.arms, revisions.get(endpoint.name, [])))
        )
        for endpoint in endpoints
    )


def _arms(arms: Iterable[DesiredArm], revisions: list[Revision]) -> Iterator[DesiredArm]:
    for arm in arms:
        ids = [revision.id for revision in revisions if is_same(revision, arm.revision)]
        if not ids or arm.revision.id in ids:
            yield arm
        else:
            revision = msgspec.structs.replace(arm.revision, id=ids[0])
            yield msgspec.structs.replace(arm, revision=revision)


def is_same(existing: Revision, new: Revision) -> bool:
    """Whether `existing` would get the id of `new` if it were created now.

    Former releases stored no content digest of a model that is served from its path: then the path
    is compared.
    """
    if existing.id == new.id:
        return True
    if existing.upstream is not None or new.upstream is not None:
        return False  # their ids never contained paths of a machine
    expected = new if existing.content else with_id(msgspec.structs.replace(new, content=""))
    return with_id(existing).id == expected.id


_LOG: Final = logging.getLogger("headrace.control")
_ARTIFACT: Final = re.compile(rf'"((?:/(?:[^"\\]|\\.)*)?){LAYOUT}'.encode())
"""Start of a JSON string that is a path into a home's artifacts."""
T = TypeVar("T", bound=msgspec.Struct)


def relocate(stored: T, root: Path) -> tuple[T, set[Digest]]:
    """Return `stored` with artifact paths moved to the home at `root`, and these artifacts."""
    digests: set[Digest] = set()
    homes: set[bytes] = set()
    home = msgspec.json.encode(str(root)).strip(b'"')

    def moved(match: re.Match[bytes]) -> bytes:
        homes.add(match[1])
        digests.add(Digest(f"sha256:{match[2].decode()}"))
        return b'"%b/artifacts/sha256/%b/' % (home, match[2])

    text = msgspec.json.encode(stored)
    changed = _ARTIFACT.sub(moved, text)
    store = f'"{SQLITE}'.encode()
    for previous in homes - {home, b""}:
        changed = changed.replace(store + previous + b"/", store + home + b"/")
    if changed == text:
        return stored, digests
    return msgspec.json.decode(changed, type=type(stored)), digests


def relocate_and_fetch(stored: T, registry: Registry) -> T:
    """Relocate as `relocate`, and fetch content that only the shared store has. Blocking.

    Content that cannot be fetched is logged, and the rest is served without it.
    """
    relocated, digests = relocate(stored, registry.home)
    for digest in sorted(digests):
        try:
            registry.fetch_content(digest)
        except HeadraceError as error:
            _LOG.error("cannot have a model here: %s", error, extra={"digest": digest})
    return relocated
