"""The part of SARIF 2.1.0's JSON Schema that an audit uses, strict: what is not here may not be."""

from typing import Any

Schema = dict[str, Any]


def _object(required: list[str], **properties: Schema) -> Schema:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required,
        "properties": properties,
    }


def _array(items: Schema, **more: Any) -> Schema:  # noqa: ANN401  # JSON Schema
    return {"type": "array", "items": items, **more}


_TEXT = {"type": "string"}
_MESSAGE = _object(["text"], text=_TEXT)
_LEVEL = {"enum": ["none", "note", "warning", "error"]}
_INDEX = {"type": "integer", "minimum": -1}
_BAG = {"type": "object", "properties": {"tags": _array(_TEXT, uniqueItems=True)}}
_URI = {"type": "string", "format": "uri-reference", "pattern": r"^[^\s<>\"{}|\\^`]*$"}
_REGION = _object(["startLine"], startLine={"type": "integer", "minimum": 1})
_PHYSICAL = _object(
    ["artifactLocation"], artifactLocation=_object(["uri"], uri=_URI), region=_REGION
)
_LOCATION = _object(
    [],
    physicalLocation=_PHYSICAL,
    logicalLocations=_array(_object([], fullyQualifiedName=_TEXT), uniqueItems=True),
)
_RULE = _object(
    ["id"],
    id=_TEXT,
    name=_TEXT,
    shortDescription=_MESSAGE,
    fullDescription=_MESSAGE,
    help=_MESSAGE,
    defaultConfiguration=_object([], level=_LEVEL),
    properties=_BAG,
)
_RESULT = _object(
    ["message"],
    ruleId=_TEXT,
    ruleIndex=_INDEX,
    level=_LEVEL,
    message=_MESSAGE,
    locations=_array(_LOCATION),
    partialFingerprints={"type": "object", "additionalProperties": _TEXT},
    properties=_BAG,
)
_NOTIFICATION = _object(
    ["message"],
    level=_LEVEL,
    message=_MESSAGE,
    associatedRule=_object([], id=_TEXT, index=_INDEX),
)
_INVOCATION = _object(
    ["executionSuccessful"],
    executionSuccessful={"type": "boolean"},
    endTimeUtc={"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"},
    toolExecutionNotifications=_array(_NOTIFICATION),
)
_DRIVER = _object(["name"], name=_TEXT, semanticVersion=_TEXT, rules=_array(_RULE))
_RUN = _object(
    ["tool"],
    tool=_object(["driver"], driver=_DRIVER),
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
    invocations=_array(_INVOCATION),
    results=_array(_RESULT),
)
SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_object(["version", "runs"], version={"const": "2.1.0"}, runs=_array(_RUN)),
}
SCHEMA["properties"]["$schema"] = {"type": "string", "format": "uri"}
