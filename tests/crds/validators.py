"""JSON Schemas recovered from the validators of npm's `@kubernetes-models` packages.

Those packages are generated from each project's own Go types, and ship one JavaScript file a type
that Ajv wrote: flat, and of a dozen forms only. A form that is not known here is an error, never
a gap in a schema. What the validators leave open is closed: the API server drops unknown fields.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

Schema = dict[str, Any]

_LIMITS: Final = {
    "maxItems", "minItems", "maxLength", "minLength", "maximum", "minimum", "maxProperties",
}  # fmt: skip
_FORMATS: Final[dict[str, Schema]] = {
    "int32": {"minimum": -(2**31), "maximum": 2**31 - 1},
    "int64": {"minimum": -(2**63), "maximum": 2**63 - 1},
    "quantity": {"pattern": r"^[+-]?(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d+)?$"},
}
_STRING: Final = r'"(?:[^"\\]|\\.)*"'
_FUNCTION: Final = re.compile(
    r'function validate(\d+)\(data,\{instancePath="",parentData,parentDataProperty,rootData=data\}'
    r"=\{\}\)\{let vErrors=null,errors=0([,;].*?)validate\1\.errors=vErrors,0===errors\}"
)
_OPEN: Final = re.compile(
    r'function validate(\d+)\(data,\{instancePath="",parentData,parentDataProperty,rootData=data\}'
    r"=\{\}\)\{return validate\1\.errors=null,!0\}"
)
_ANYTHING: Final = ""
_IMPORT: Final = re.compile(r'import\{validate as validate(\d+)\}from"([^"]+)"')
_ENUM: Final = re.compile(r"let (schema\d+_enum)=(\[.*?\]);")
_MAIN: Final = re.compile(r"export const validate=validate(\d+);")
_ERROR: Final = re.compile(
    r'let err\d+=\{instancePath,schemaPath:"#/\w+",keyword:"(\w+)",params:\{(.*?)\}\};'
    r"null===vErrors\?vErrors=\[err\d+\]:vErrors\.push\(err\d+\),errors\+\+"
)
_FAILED: Final = (
    r"\|\|\(errors=\(vErrors=null===vErrors\?validate\d+\.errors"
    r":vErrors\.concat\(validate\d+\.errors\)\)\.length\)"
)
_PLACE: Final = r"\{instancePath:instancePath\+[^{}]*?,parentData:data,parentDataProperty:"
_PROPERTY: Final = re.compile(
    rf"void 0!==data(?:\.[\w$]+|\[{_STRING}\])&&\(validate(\d+)\(data(?:\.[\w$]+|\[{_STRING}\]),"
    rf"{_PLACE}({_STRING}),rootData\}}\){_FAILED}\)"
)
_ITEM: Final = re.compile(
    r"let len\d+=data\.length;for\(let i\d+=0;i\d+<len\d+;i\d+\+\+\)"
    rf"validate(\d+)\(data\[i\d+\],{_PLACE}i\d+,rootData\}}\){_FAILED}"
)
_VALUE: Final = re.compile(
    rf"for\(let key\d+ in data\)validate(\d+)\(data\[key\d+\],{_PLACE}key\d+,rootData\}}\){_FAILED}"
)
_REFERENCE: Final = re.compile(
    rf"validate(\d+)\(data,\{{instancePath,parentData,parentDataProperty,rootData\}}\){_FAILED}"
)
# What an error or a reference hangs on: said again by the error, or "null passes", which we refuse.
_NUMBER: Final = r"-?[\d.]+(?:e\d+)?"
_GUARD: Final = re.compile(
    rf"{_STRING}[!=]=typeof data|{_STRING}!==data|{_NUMBER}!==data|null!==data"
    r"|Array\.isArray\(data\)|void 0===data(?:\.[\w$]+|\[\"[^\"]*\"\])"
    r"|data%1|isNaN\(data\)|isFinite\(data\)"
    rf"|data\.length[<>]{_NUMBER}|Object\.keys\(data\)\.length[<>]{_NUMBER}|data[<>]{_NUMBER}"
    rf"|func\d+\(data\)>{_NUMBER}|{_NUMBER}>func\d+\(data\)|pattern\d+\.test\(data\)"
    r"|formats\d+\.validate(?:\.test)?\(data\)|\bdata&&|\belse\b|\bif\b|\breturn\b"
)


class UnreadableError(ValueError):
    """A validator has a form that is not known here; the message says which, and where."""


@dataclass(slots=True)
class Reader:
    """Schemas of whole types, each read once.

    `file_of(importer, name)`: the file that an import means. `hidden(file)`: properties that the
    published CRD leaves out. `defs` has every type that was asked for, and what those refer to.
    """

    file_of: Callable[[Path, str], Path]
    hidden: Callable[[Path], set[str]] = lambda _: set()
    defs: dict[str, Schema] = field(default_factory=dict)

    def schema(self, file: Path) -> Schema:
        """The schema of the type in a file; `$ref`s lead into `defs`.

        Raises:
            UnreadableError: It is not of a known form.
        """
        if file.stem not in self.defs:
            self.defs[file.stem] = {}  # a type may hold itself
            self.defs[file.stem] = self._read(file)
        return self.defs[file.stem]

    def reference(self, file: Path) -> Schema:
        """A `$ref` to the type in a file."""
        self.schema(file)
        return {"$ref": f"#/$defs/{file.stem}"}

    def _read(self, file: Path) -> Schema:
        text = file.read_text(encoding="utf-8")
        main = _MAIN.search(text)
        if main is None:
            message = f"{file.name}: no validator is exported"
            raise UnreadableError(message)
        imports = {
            number: name for number, name in _IMPORT.findall(text) if "validate/runtime" not in name
        }
        module = _Module(
            file=file,
            bodies=dict(_FUNCTION.findall(text)) | dict.fromkeys(_OPEN.findall(text), _ANYTHING),
            imports=imports,
            enums={name: json.loads(values) for name, values in _ENUM.findall(text)},
            reader=self,
        )
        found = module.schema(main[1])
        gone = self.hidden(file)
        if gone and "properties" in found:
            found["properties"] = {k: v for k, v in found["properties"].items() if k not in gone}
        return found


@dataclass(slots=True)
class _Module:
    file: Path
    bodies: dict[str, str]
    imports: dict[str, str]
    enums: dict[str, list[Any]]
    reader: Reader

    def schema(self, number: str) -> Schema:
        if number in self.imports:
            return self.reader.reference(self.reader.file_of(self.file, self.imports[number]))
        if number not in self.bodies:
            message = f"{self.file.name}: validate{number} is not of a known form"
            raise UnreadableError(message)
        body = self.bodies[number]
        if body == _ANYTHING:
            return {}
        references = [self.schema(one) for one in _REFERENCE.findall(body)]
        if 'keyword:"oneOf"' in body:
            return {"oneOf": references}
        own = self._own(body)
        self._check_all_read(body)
        return self._joined(own, references)

    def _own(self, body: str) -> Schema:
        found: Schema = {}
        for keyword, params in _ERROR.findall(body):
            self._add(found, keyword, params)
        properties = {json.loads(n): self.schema(one) for one, n in _PROPERTY.findall(body)}
        if properties:
            found |= {"properties": properties, "additionalProperties": False}
        for one in _ITEM.findall(body):
            found["items"] = self.schema(one)
        for one in _VALUE.findall(body):
            found["additionalProperties"] = self.schema(one)
        return found

    def _add(self, found: Schema, keyword: str, params: str) -> None:
        value = params.split(":", 1)[1]
        if keyword == "required":
            found.setdefault("required", []).append(json.loads(value))
        elif keyword == "enum":
            found["enum"] = self.enums[value]
        elif keyword in _LIMITS:
            found[keyword] = json.loads(params.rsplit(":", 1)[1])
        elif keyword == "format":
            for key, limit in _FORMATS.get(json.loads(value), {}).items():
                found.setdefault(key, limit)
        elif keyword in {"type", "pattern"}:
            found[keyword] = json.loads(value)
        else:
            message = f"{self.file.name}: the keyword {keyword} is not known here"
            raise UnreadableError(message)

    def _check_all_read(self, body: str) -> None:
        rest = body
        for form in (_ERROR, _PROPERTY, _ITEM, _VALUE, _REFERENCE, _GUARD):
            rest = form.sub("", rest)
        if left := re.sub(r"[\s{}()&|!;,]", "", rest):
            message = f"{self.file.name}: {left[:200]!r} is no form that is known here"
            raise UnreadableError(message)

    def _joined(self, own: Schema, references: list[Schema]) -> Schema:
        """A type with the types in it: structs that Go embeds are one object, not two."""
        if not own and len(references) == 1:
            return references[0]
        targets = [self.reader.defs[one["$ref"].rsplit("/", 1)[1]] for one in references]
        if not targets or not any("properties" in target for target in targets):
            return {**own, "allOf": references} if references else own
        parts = [*targets, own]
        required = {name for part in parts for name in part.get("required", ())}
        return {
            "type": "object",
            "properties": {k: v for part in parts for k, v in part.get("properties", {}).items()},
            "additionalProperties": False,
            **({"required": sorted(required)} if required else {}),
        }


def used(schema: Schema, defs: dict[str, Schema]) -> dict[str, Schema]:
    """Those of `defs` that a schema refers to, by itself or by others."""
    found: dict[str, Schema] = {}
    waiting = list(_names(schema))
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = defs[name]
            waiting += _names(defs[name])
    return found


def _names(node: Any) -> Iterator[str]:  # noqa: ANN401  # a part of a schema
    if isinstance(node, dict):
        reference = node.get("$ref")
        if isinstance(reference, str):
            yield reference.rsplit("/", 1)[1]
        for one in node.values():
            yield from _names(one)
    elif isinstance(node, list):
        for one in node:
            yield from _names(one)
