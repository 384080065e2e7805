"""Is an object one that a real API server would take? By the schemas that Kubernetes publishes.

Needs `kubernetes-validate`, which holds them.
"""

import functools
import re
from collections.abc import Iterable
from typing import Any, Final

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

_VERSION: Final = "1.37"


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
    error = next(_validator(kind, api_version).iter_errors(one), None)
    if error is not None:
        place = ".".join(map(str, error.absolute_path))
        raise InvalidObjectError(f"{kind} {one['metadata'].get('name')}: {place}: {error.message}")


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
