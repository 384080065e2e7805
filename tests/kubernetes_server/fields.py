"""Who manages which field of an object? Server-side apply, as the API server does it.

https://kubernetes.io/docs/reference/using-api/server-side-apply/ : lists whose items have keys are
maps, others are values as a whole; a field that another manager set to something else is a
conflict; a field that its last manager no longer says is removed.
"""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

Path = tuple[str, ...]
"""Steps such as `f:spec`, and `k:{"name":"x"}` into a list; those of FieldsV1."""
Object = dict[str, Any]

_KEYS: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "volumes": (("name",),),
    "env": (("name",),),
    "imagePullSecrets": (("name",),),
    "volumeMounts": (("mountPath",),),
    "ownerReferences": (("uid",),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
    "conditions": (("type",),),
}
_ATOMIC: Final = frozenset(
    {"selector", "labelSelector", "nodeSelector", "secretKeyRef", "configMapKeyRef"}
)
"""Maps that are values as a whole."""
_UNMANAGED: Final = frozenset(
    {
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "generation",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "managedFields",
        "selfLink",
    }
)


class FieldConflictError(Exception):
    """Other managers say something else; `causes` by manager, the paths."""

    def __init__(self, causes: Mapping[str, list[Path]]) -> None:
        super().__init__(f"Apply failed with {sum(map(len, causes.values()))} conflict(s)")
        self.causes = causes


@dataclass(slots=True)
class Managers:
    """Paths by manager and operation."""

    owned: dict[tuple[str, str], set[Path]] = field(default_factory=dict)

    def others(self, manager: str, operation: str) -> Iterator[tuple[str, set[Path]]]:
        """What everybody else manages."""
        for (name, kind), paths in self.owned.items():
            if (name, kind) != (manager, operation):
                yield name, paths

    def entries(self, api_version: str, time: str) -> list[Object]:
        """As `metadata.managedFields` has it."""
        return [
            {
                "manager": manager,
                "operation": operation,
                "apiVersion": api_version,
                "time": time,
                "fieldsType": "FieldsV1",
                "fieldsV1": _nested(paths),
            }
            for (manager, operation), paths in self.owned.items()
            if paths
        ]


def applied(
    live: Object | None, config: Object, managers: Managers, *, manager: str, force: bool
) -> Object:
    """`live` after `manager` applied `config`; `managers` says who has what then.

    Raises:
        FieldConflictError: Another manager says something else, and it was not forced.
    """
    told = leaves(config)
    before = {} if live is None else leaves(live)
    _settle_conflicts(before, told, managers, manager=manager, force=force)
    known = managers.owned.get((manager, "Apply"), set())
    result = copy.deepcopy(live) if live is not None else {}
    for path in sorted(known - told.keys(), key=len, reverse=True):
        if not any(_covers(path, paths) for _, paths in managers.others(manager, "Apply")):
            _remove(result, path)
    _merge(result, config)
    managers.owned[manager, "Apply"] = set(told)
    return result


def updated(live: Object | None, new: Object, managers: Managers, *, manager: str) -> None:
    """Note in `managers` that `manager` wrote `new` as a whole: what it changed is its own."""
    before = {} if live is None else leaves(live)
    after = leaves(new)
    changed = {path for path, value in after.items() if before.get(path, _NOTHING) != value}
    gone = before.keys() - after.keys()
    for key, paths in managers.owned.items():
        managers.owned[key] = paths - gone - (changed if key != (manager, "Update") else set())
    if changed:
        managers.owned.setdefault((manager, "Update"), set()).update(changed)


_NOTHING: Final = object()


def leaves(one: Object) -> dict[Path, object]:
    """Every managed field and its value; items of keyed lists as fields of their own."""
    found: dict[Path, object] = {}
    for key, value in one.items():
        if key in {"apiVersion", "kind", "status"}:
            continue
        if key == "metadata":
            kept = {name: each for name, each in value.items() if name not in _UNMANAGED}
            found.update(_leaves(kept, ("f:metadata",), ""))
        else:
            found.update(_leaves(value, (f"f:{key}",), key))
    return found


def _leaves(value: object, path: Path, name: str) -> Iterator[tuple[Path, object]]:
    if isinstance(value, dict) and value and name not in _ATOMIC:
        for key, each in value.items():
            yield from _leaves(each, (*path, f"f:{key}"), key)
    elif isinstance(value, list) and (keys := _keys_of(name, value)):
        for item in value:
            place = (*path, _step(item, keys))
            yield (*place, "."), True
            for key, each in item.items():
                yield from _leaves(each, (*place, f"f:{key}"), key)
    elif not (isinstance(value, dict) and path == ("f:metadata",)):
        yield path, value


def _keys_of(name: str, items: list[Any]) -> tuple[str, ...]:
    for keys in _KEYS.get(name, ()):
        if items and all(isinstance(item, dict) and keys[0] in item for item in items):
            return keys
    return ()


def _step(item: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    return "k:" + json.dumps({key: item[key] for key in keys if key in item}, sort_keys=True)


def _settle_conflicts(
    before: Mapping[Path, object],
    told: Mapping[Path, object],
    managers: Managers,
    *,
    manager: str,
    force: bool,
) -> None:
    causes: dict[str, list[Path]] = {}
    for other, paths in managers.others(manager, "Apply"):
        taken = [
            path for path in paths & told.keys() if path in before and before[path] != told[path]
        ]
        if taken and force:
            paths.difference_update(taken)
        elif taken:
            causes.setdefault(other, []).extend(taken)
    if causes:
        raise FieldConflictError(causes)


def _covers(path: Path, paths: set[Path]) -> bool:
    """Whether somebody has `path`, or for a list's item anything in it."""
    if path in paths:
        return True
    return path[-1] == "." and any(each[: len(path) - 1] == path[:-1] for each in paths)


def _remove(one: Object, path: Path) -> None:
    """Take a field out, and what is empty without it."""
    holders: list[tuple[Any, Any]] = []
    here: Any = one
    steps = path[:-1] if path[-1] == "." else path
    for step in steps:
        key = _find(here, step)
        if key is None:
            return
        holders.append((here, key))
        here = here[key]
    holder, key = holders.pop()
    del holder[key]
    while holders and not holder and holders[-1][0] is not one:
        holder, key = holders.pop()
        if holder[key]:
            return
        del holder[key]


def _find(here: object, step: str) -> Any:  # noqa: ANN401  # a key or an index
    if step.startswith("f:"):
        return step[2:] if isinstance(here, dict) and step[2:] in here else None
    wanted = json.loads(step[2:])
    for i, item in enumerate(here if isinstance(here, list) else []):
        if all(item.get(key) == value for key, value in wanted.items()):
            return i
    return None


def _merge(live: Object, config: Mapping[str, Any]) -> None:
    for key, value in config.items():
        known = live.get(key)
        if isinstance(value, dict) and isinstance(known, dict) and key not in _ATOMIC:
            _merge(known, value)
        elif isinstance(value, list) and isinstance(known, list) and (k := _keys_of(key, value)):
            _merge_items(known, value, k)
        else:
            live[key] = copy.deepcopy(value)


def _merge_items(live: list[Any], items: list[Any], keys: tuple[str, ...]) -> None:
    places = {_step(item, keys): i for i, item in enumerate(live)}
    for item in items:
        at = places.get(_step(item, keys))
        if at is None:
            live.append(copy.deepcopy(item))
        else:
            _merge(live[at], item)


def _nested(paths: set[Path]) -> Object:
    tree: Object = {}
    for path in sorted(paths):
        here = tree
        for step in path:
            here = here.setdefault(step, {})
    return tree
