"""Patch of a pod template: what it may contain, and how it is merged.

The merge is a strategic merge that only adds: mappings are merged by key, lists of named items by
name, other lists are extended. It cannot remove a field.
"""

from collections.abc import Iterator, Mapping, Sequence
from posixpath import normpath
from typing import Any, Final

LIST_KEYS: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "containers": (("name",),),
    "initContainers": (("name",),),
    "volumes": (("name",),),
    "env": (("name",),),
    "imagePullSecrets": (("name",),),
    "resourceClaims": (("name",),),
    "claims": (("name",),),
    "hostAliases": (("ip",),),
    "volumeDevices": (("devicePath",),),
    "volumeMounts": (("mountPath",),),
    "topologySpreadConstraints": (("topologyKey", "whenUnsatisfiable"),),
    "ports": (("containerPort", "protocol"), ("port", "protocol")),
}
"""Lists of a pod with map semantics, and the key fields of an item: the first present ones."""
_LABELS: Final = ("headrace.dev/", "app.kubernetes.io/")
_CONTAINERS: Final = ("replica", "fetch-model")
_CONTAINER_FIELDS: Final = frozenset(
    {"image", "imagePullPolicy", "command", "args", "ports", "lifecycle"}
    | {"startupProbe", "readinessProbe", "livenessProbe", "restartPolicy", "workingDir"}
)
_POD_FIELDS: Final = frozenset(
    {"restartPolicy", "terminationGracePeriodSeconds", "activeDeadlineSeconds", "hostNetwork"}
)
_VOLUMES: Final = frozenset({"models", "tmp", "settings", "internal", "shm"})
_MOUNTS: Final = frozenset({"/", "/tmp", "/dev/shm"})  # noqa: S108  # of pods
_MOUNTED_BELOW: Final = ("/models/", "/etc/headrace/", "/etc/headrace-internal/")
_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(LIST_KEYS, (list, tuple)),
    **dict.fromkeys(("metadata", "spec", "labels", "annotations", "securityContext"), dict),
}
_VARIABLE: Final = "HEADRACE_INTERNAL_TOKEN_FILE"


def check_label_key(key: str) -> str:
    """Return the key of a pod label; ValueError if Headrace or its installation sets it."""
    if key.startswith(_LABELS):
        raise ValueError(f"the label {key!r} is Headrace's: use another prefix")
    return key


def check_patch(patch: dict[str, Any]) -> dict[str, Any]:
    """Return a patch of a pod template; ValueError with all its mistakes."""
    problems = list(_mistakes(patch))
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    return patch


def merged(base: Any, patch: Any, name: str = "") -> Any:  # noqa: ANN401  # any part of an object
    """Return `base` with the additions and changes of `patch`.

    Args:
        name: Field that holds both; it determines how lists are merged.
    """
    if isinstance(base, Mapping) and isinstance(patch, Mapping):
        both = {key: merged(base[key], patch[key], key) for key in base.keys() & patch.keys()}
        return {**base, **patch, **both}
    if not (isinstance(base, Sequence) and isinstance(patch, Sequence)) or isinstance(base, str):
        return patch
    items = list(base)
    for item in patch:
        key = identity_of(name, item)
        position = next(
            (i for i, own in enumerate(items) if key and identity_of(name, own) == key), None
        )
        if position is not None:
            items[position] = merged(items[position], item)
        elif item not in items:
            items.append(item)
    return items


def identity_of(name: str, item: object) -> tuple[object, ...]:
    """Return the values of an item's key fields in the list `name`; empty if it has none."""
    if not isinstance(item, Mapping):
        return ()
    keys = next((keys for keys in LIST_KEYS.get(name, ()) if keys[0] in item), ())
    return tuple(item.get(key) for key in keys)


def _mistakes(patch: Mapping[str, Any]) -> Iterator[str]:
    yield from _malformed(patch, "")
    for part in sorted(patch.keys() - {"metadata", "spec"}):
        yield f"{part!r} is not part of a pod template: use 'metadata' and 'spec'"
    metadata, spec = _mapping(patch.get("metadata")), _mapping(patch.get("spec"))
    for part in sorted(metadata.keys() - {"labels", "annotations"}):
        yield f"'metadata.{part}' is not supported: use 'labels' and 'annotations'"
    for key in (*_mapping(metadata.get("labels")), *_mapping(metadata.get("annotations"))):
        if str(key).startswith(_LABELS):
            yield f"the label or annotation {key!r} is Headrace's: use another prefix"
    for part in sorted(spec.keys() & _POD_FIELDS):
        yield f"'spec.{part}' is Headrace's: leave it out"
    for volume in _items(spec.get("volumes")):
        if volume.get("name") in _VOLUMES:
            yield f"the volume {volume['name']!r} is Headrace's: use another name"
    containers = (*_items(spec.get("containers")), *_items(spec.get("initContainers")))
    for container in (c for c in containers if c.get("name") in _CONTAINERS):
        yield from _own_mistakes(container)


def _own_mistakes(container: Mapping[str, Any]) -> Iterator[str]:
    """Yield the mistakes of a patch of one of Headrace's containers."""
    description = f"container {container['name']!r}"
    for part in sorted(container.keys() & _CONTAINER_FIELDS):
        hint = "set `kubernetes.image`" if part == "image" else "leave it out"
        yield f"{part!r} of {description} is Headrace's: {hint}"
    for mount in _items(container.get("volumeMounts")):
        path = normpath(f"/{str(mount.get('mountPath', '')).lstrip('/')}")
        if path in _MOUNTS or f"{path}/".startswith(_MOUNTED_BELOW):
            yield f"a mount of {description} at {path!r} hides Headrace's: use another path"
    for variable in _items(container.get("env")):
        if variable.get("name") == _VARIABLE:
            yield f"the variable {_VARIABLE} of {description} is Headrace's: leave it out"


def _malformed(value: object, path: str) -> Iterator[str]:
    """Yield parts that a patch cannot have anywhere: nulls, directives, items without a key."""
    name = path.rpartition(".")[2]
    if value is None:
        yield f"'{path}' is null: a patch adds and changes fields, and removes none"
    elif not isinstance(value, _KINDS.get(name, object)):
        yield f"'{path}' has the wrong type"
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str) or key.startswith("$"):
                yield f"'{path}.{key}': directives are not supported"
            yield from _malformed(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            if name in LIST_KEYS and not identity_of(name, item):
                yield f"an item of '{path}' lacks {LIST_KEYS[name][0][0]!r}"
            yield from _malformed(item, f"{path}[]")


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _items(value: object) -> list[Mapping[str, Any]]:
    return [_mapping(item) for item in value] if isinstance(value, list | tuple) else []
