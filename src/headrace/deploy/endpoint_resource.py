"""CustomResourceDefinition of `Endpoint`, generated from the models of the spec file.

A structural schema has no references, unions and closed objects: unions of one type are merged,
and a field of several types takes any value. The control plane checks it when it applies it.
"""

from collections.abc import Mapping
from typing import Any, Final

from headrace.control.kubernetes.names import (
    GROUP,
    RESOURCE,
    RESOURCE_PLURAL,
    RESOURCE_VERSION,
    Object,
)
from headrace.core.spec.base import model_of
from headrace.core.spec.kubernetes import PodsSpec
from headrace.core.spec.models import FULL_WEIGHT, EndpointSpec

_MAX_NAME: Final = 128
_KEPT: Final = frozenset(
    {"description", "type", "enum", "required", "pattern", "minimum", "maximum", "minLength"}
    | {"maxLength", "minItems", "maxItems"}
)
_ANY: Final = {"x-kubernetes-preserve-unknown-fields": True}


def _rule(rule: str, message: str) -> Object:
    return {"rule": rule, "message": message}


_SPEC_RULES: Final = [
    _rule(
        "[has(self.model), has(self.versions), has(self.upstream)].filter(x, x).size() == 1",
        "needs one of model, versions and upstream",
    ),
    _rule(
        "!has(self.replicas) || has(self.model)",
        "replicas is only allowed with model; set it for each version",
    ),
    _rule(
        "!has(self.pool) || has(self.model) || has(self.versions)",
        "pool cannot be combined with upstream",
    ),
    _rule(
        "!has(self.pool) || (!has(self.autoscale) && !(has(self.network) && self.network))",
        "pool cannot be combined with autoscale or network",
    ),
    _rule(
        "!has(self.upstream) || !(has(self.autoscale) || has(self.drift) || has(self.payload_log))",
        "upstream cannot be combined with autoscale, drift and payload_log",
    ),
]
_VERSIONS_RULES: Final = [
    _rule(f"self.map(v, v.weight).sum() == {FULL_WEIGHT}", f"weights must sum to {FULL_WEIGHT}"),
    _rule("self.all(v, has(v.model) != has(v.upstream))", "needs either model or upstream"),
]
_VARIABLE_RULES: Final = [
    _rule("has(self.value) != has(self.secret)", "needs either value, or secret and key"),
    _rule("has(self.secret) == has(self.key)", "secret and key must be set together"),
]


def structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Object:
    """Return a JSON Schema in the form that the API server accepts."""
    if (ref := schema.get("$ref")) is not None:
        target = structural(definitions[ref.rpartition("/")[2]], definitions)
        text = schema.get("description")
        return target if text is None else target | {"description": text}
    choices = schema.get("anyOf") or schema.get("oneOf")
    if choices:
        kinds = [structural(c, definitions) for c in choices if c.get("type") != "null"]
        merged = _merged(kinds)
        if len(kinds) < len(choices):
            merged["nullable"] = True
        return merged | _described(schema)
    result: Object = {} if "type" in schema else dict(_ANY)
    result |= {key: value for key, value in schema.items() if key in _KEPT}
    if "const" in schema:
        result["enum"] = [schema["const"]]
    for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if key in schema:
            result |= {bound: schema[key], key: True}
    if "properties" in schema:
        result["properties"] = {
            name: structural(inner, definitions) for name, inner in schema["properties"].items()
        }
    elif schema.get("type") == "object":
        inner = schema.get("additionalProperties")
        values = structural(inner, definitions) if isinstance(inner, Mapping) else _ANY
        result["additionalProperties"] = values
    if schema.get("type") == "array":
        result["items"] = structural(schema.get("items", {}), definitions)
    return result | _described(schema)


def _described(schema: Mapping[str, Any]) -> Object:
    """Return the description with the default, which the server must not fill in."""
    text, default = schema.get("description", ""), schema.get("default")
    if isinstance(default, bool):
        text = f"{text} Default: {str(default).lower()}."
    elif isinstance(default, str | int | float) and default != "":
        text = f"{text} Default: {default}."
    return {"description": text.strip()} if text else {}


def _merged(kinds: list[Object]) -> Object:
    """Return a schema that every valid value of each schema satisfies."""
    first, *others = kinds
    if not others:
        return dict(first)
    if any(kind.get("type") != first.get("type") for kind in others):
        return dict(_ANY)
    if first["type"] == "object":
        names = dict.fromkeys(name for kind in kinds for name in kind["properties"])
        required = set(first.get("required", ())).intersection(
            *(kind.get("required", ()) for kind in others)
        )
        return {
            "type": "object",
            "required": sorted(required),
            "properties": {
                name: _merged([k["properties"][name] for k in kinds if name in k["properties"]])
                for name in names
            },
        }
    words = [word for kind in kinds for word in kind.get("enum", ())]
    same = {
        key: value for key, value in first.items() if all(kind.get(key) == value for kind in others)
    }
    return same | ({"enum": words} if all("enum" in kind for kind in kinds) else {})


def _schema_of(model: Any) -> Object:  # noqa: ANN401  # a pydantic model
    schema = model.model_json_schema()
    return structural(schema, schema.get("$defs", {}))


def _spec_schema() -> Object:
    spec, pods = _schema_of(EndpointSpec), _schema_of(model_of(PodsSpec))
    del spec["properties"]["name"]
    spec["required"] = [name for name in spec.get("required", ()) if name != "name"]
    if not spec["required"]:
        del spec["required"]
    pods["description"] = "Pods of this endpoint; replaces the installation's defaults."
    pods["properties"]["replica_env"]["items"]["x-kubernetes-validations"] = _VARIABLE_RULES
    spec["properties"]["versions"]["x-kubernetes-validations"] = _VERSIONS_RULES
    spec["properties"]["kubernetes"] = pods
    return spec | {"x-kubernetes-validations": _SPEC_RULES}


def _text(description: str, **bounds: Any) -> Object:  # noqa: ANN401  # of any type
    return {"type": "string", "description": description, **bounds}


def _count(description: str) -> Object:
    return {"type": "integer", "format": "int64", "description": description}


_CONDITION: Final[Object] = {
    "type": "object",
    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
    "properties": {
        "type": _text("Ready, Progressing, RolledBack or Degraded.", maxLength=316),
        "status": _text("True, False or Unknown.", enum=["True", "False", "Unknown"]),
        "observedGeneration": _count("Generation of the resource that it is about."),
        "lastTransitionTime": _text("Last change of the status.", format="date-time"),
        "reason": _text("One word for programs.", maxLength=1024),
        "message": _text("Details for people.", maxLength=32768),
    },
}
_STATUS: Final[Object] = {
    "type": "object",
    "properties": {
        "conditions": {
            "type": "array",
            "description": "Ready, Progressing, RolledBack and Degraded.",
            "items": _CONDITION,
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
        "observedGeneration": _count("Generation of the resource that was applied or refused."),
        "versions": {
            "type": "array",
            "description": "What runs now.",
            "items": {
                "type": "object",
                "required": ["version", "model", "weight", "replicas", "ready"],
                "properties": {
                    "version": _text("Version of the model."),
                    "model": _text("Model in the registry, or URL of an upstream."),
                    "weight": _count("Share of the requests. Unit: percent."),
                    "replicas": _count("Desired replicas."),
                    "ready": _count("Ready replicas."),
                },
            },
        },
        "split": _text("Versions with their weights in one line."),
        "replicas": _count("Replicas of all versions."),
        "readyReplicas": _count("Ready replicas of all versions."),
        "selector": _text("Label selector of the pods."),
        "url": _text("URL for inference requests."),
    },
}


def _column(name: str, path: str, *, kind: str = "string", priority: int = 0) -> Object:
    return {"name": name, "type": kind, "jsonPath": path, "priority": priority}


def _condition_column(name: str, part: str, *, priority: int = 0) -> Object:
    return _column(name, f'.status.conditions[?(@.type=="Ready")].{part}', priority=priority)


def endpoint_definition() -> Object:
    """Return the CustomResourceDefinition of `Endpoint`."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{RESOURCE_PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": RESOURCE,
                "listKind": f"{RESOURCE}List",
                "singular": "endpoint",
                "plural": RESOURCE_PLURAL,
                "shortNames": ["hrep"],
                "categories": ["headrace"],
            },
            "versions": [
                {
                    "name": RESOURCE_VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        _condition_column("Ready", "status"),
                        _column("Versions", ".status.split"),
                        _column("Replicas", ".status.replicas", kind="integer"),
                        _column("Available", ".status.readyReplicas", kind="integer"),
                        _column("URL", ".status.url"),
                        _column("Age", ".metadata.creationTimestamp", kind="date"),
                        _condition_column("Reason", "reason", priority=1),
                    ],
                    "schema": {
                        "openAPIV3Schema": {
                            "type": "object",
                            "description": "An endpoint that the control plane of its namespace "
                            "serves, with one model or a traffic split.",
                            "required": ["spec"],
                            "properties": {"spec": _spec_schema(), "status": _STATUS},
                            "x-kubernetes-validations": [
                                _rule(
                                    f"size(self.metadata.name) <= {_MAX_NAME}",
                                    f"the name has at most {_MAX_NAME} characters",
                                )
                            ],
                        }
                    },
                }
            ],
        },
    }
