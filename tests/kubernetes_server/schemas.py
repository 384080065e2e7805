"""Is an object one that a real API server would take? By the schemas that Kubernetes publishes.

Needs `kubernetes-validate`, which holds them.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any, Final

import jsonschema
import kubernetes_validate
import msgspec
from referencing import Registry, Resource

_VERSION: Final = "1.37"
_STAMPS: Final = frozenset({"name", "uid", "resourceVersion", "generation", "managedFields"})
"""Of every object's own, and the server's to write: what they are says nothing of the rest."""
_MAX_KNOWN: Final = 10_000
_VALID: Final[set[bytes]] = set()
"""Parts of objects that were valid: a check takes a hundredth of a second, and many are alike."""


class InvalidObjectError(Exception):
    """It has an unknown field, lacks one, or holds a value of the wrong kind."""


def check(one: dict[str, Any]) -> None:
    """Raise InvalidObjectError if `one` is not valid; kinds without a schema are an error too."""
    api_version, kind = one["apiVersion"], one["kind"]
    if (
        "/" in api_version
        and "." in api_version
        and not api_version.split("/")[0].endswith("k8s.io")
    ):
        return  # a custom resource: its own definition has the schema
    parts = _parts(one)
    if parts <= _VALID:
        return
    error = next(_validator(kind, api_version).iter_errors(one), None)
    if error is None:
        if len(_VALID) > _MAX_KNOWN:
            _VALID.clear()
        _VALID.update(parts)
    else:
        place = ".".join(map(str, error.absolute_path))
        raise InvalidObjectError(f"{kind} {one['metadata'].get('name')}: {place}: {error.message}")


def _parts(one: dict[str, Any]) -> set[bytes]:
    """What decides whether `one` is valid: its status, and all the rest, each by itself."""
    kind = [one["apiVersion"], one["kind"]]
    metadata = {key: value for key, value in one["metadata"].items() if key not in _STAMPS}
    rest = {key: value for key, value in one.items() if key not in {"metadata", "status"}}
    encode = msgspec.json.encode
    return {encode([*kind, metadata, rest]), encode([*kind, "status", one.get("status")])}


def check_fixed(live: dict[str, Any], new: dict[str, Any]) -> None:
    """Raise InvalidObjectError if `new` changes a part of `live` that never changes."""
    before, after = live.get("spec") or {}, new.get("spec") or {}
    match new["kind"]:
        case "Deployment" if before["selector"] != after["selector"]:
            place, said = "spec.selector", "field is immutable"
        case "Service" if before.get("clusterIP") != after.get("clusterIP"):
            place, said = "spec.clusterIPs[0]", "may not change once set"
        case "ConfigMap" if live.get("immutable") and live.get("data") != new.get("data"):
            place, said = "data", "field is immutable when `immutable` is set"
        case _:
            return
    raise InvalidObjectError(f"{new['kind']} {new['metadata']['name']}: {place}: {said}")


def load(kinds: Iterable[tuple[str, str]]) -> None:
    """Read the schemas of these (version of the API, kind), so that no request waits for it."""
    for api_version, kind in kinds:
        _validator(kind, api_version)


@functools.cache
def _validator(kind: str, api_version: str) -> Any:  # noqa: ANN401  # a library without types
    named = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    directory = f"kubernetes-json-schema/v{_VERSION}.0-local-strict"
    contents = kubernetes_validate.utils.schema_contents
    try:
        schema = contents(f"{directory}/{kind.lower()}-{named}.json", _VERSION)
    except FileNotFoundError:
        raise InvalidObjectError(f"there is no kind {kind} in {api_version}") from None
    definitions = contents(f"{directory}/_definitions.json", _VERSION)
    registry: Registry[Any] = Resource.from_contents(definitions) @ Registry()
    registry = Resource.from_contents(schema) @ registry
    return jsonschema.validators.Draft202012Validator(schema, registry=registry)
