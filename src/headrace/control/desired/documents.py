"""Spec documents, former generations and revision ids for changes of the desired state.

Ids of revisions once had the home's path in them. A new id at the next apply
would replace all replicas, and start rollouts, without a change. So an unchanged revision keeps its
id.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
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
from headrace.core.spec.parse import SystemSpec, is_model_path
from headrace.registry import Registry
from headrace.rollout.state import RolloutPhase


def with_entry(
    document: Mapping[str, Any], name: str, entry: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return `document` with the entry of endpoint `name` replaced, added or removed (None)."""
    entries: list[Mapping[str, Any]] = list(document.get("endpoints", []))
    if entry is None:
        entries = [old for old in entries if old.get("name") != name]
    elif any(old.get("name") == name for old in entries):
        entries = [entry if old.get("name") == name else old for old in entries]
    else:
        entries.append(entry)
    return {"version": 1, **document, "endpoints": [dict(item) for item in entries]}


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
