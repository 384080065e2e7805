"""JSON Schemas of KServe types, recovered from the classes of PyPI's `kserve`.

OpenAPI Generator writes a class a type, with each attribute's name and type, and a refusal of None
for those that must be there. The code is read and never run. Core types are Kubernetes' own.
"""

import ast
import re
from pathlib import Path
from typing import Any, Final

from tests.crds.validators import Reader, Schema, UnreadableError

_PLAIN: Final[dict[str, Schema]] = {
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "object": {},
    "V1ObjectMeta": {"type": "object"},
    "V1beta1MetricQuantity": {"type": ["string", "number"]},
}
# Named by the package, and not in it: a field of such a type is refused.
_MISSING: Final = {"V1alpha1WorkerSpec"}
_LIST: Final = re.compile(r"list\[(.+)\]")
_MAP: Final = re.compile(r"dict\(str, (.+)\)")
_REQUIRED: Final = re.compile(r"Invalid value for `(\w+)`, must not be `None`")
_CLASS: Final = re.compile(r"^class (\w+)\(", re.MULTILINE)


class KServe:
    """Types of KServe's, which land beside the core types in `reader.defs`.

    Args:
        models: The folder of the classes.
        core: The folder of core types' validators.
        machinery: The folder of those that all of Kubernetes shares.
        reader: Reads core types.
    """

    def __init__(self, models: Path, core: Path, machinery: Path, reader: Reader) -> None:
        self._files = {
            name: file
            for file in sorted(models.glob("*.py"))
            for name in _CLASS.findall(file.read_text(encoding="utf-8"))
        }
        self._core = core
        self._machinery = machinery
        self._reader = reader

    def schema(self, name: str) -> Schema:
        """The schema of a class, without what its controller alone says.

        Raises:
            UnreadableError: It has a type that is not known here.
        """
        text = self._files[name].read_text(encoding="utf-8")
        (body,) = (
            node.body
            for node in ast.parse(text).body
            if isinstance(node, ast.ClassDef) and node.name == name
        )
        tables = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            if node.targets[0].id in {"openapi_types", "attribute_map"}
        }
        names: dict[str, str] = tables["attribute_map"]
        types: dict[str, str] = tables["openapi_types"]
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {
                names[key]: self._of(kind, key, name)
                for key, kind in types.items()
                if not kind.endswith("Status") and kind not in _MISSING
            },
            "additionalProperties": False,
        }
        if required := sorted({names[key] for key in _REQUIRED.findall(text)}):
            schema["required"] = required
        return schema

    def _of(self, kind: str, attribute: str, owner: str) -> Schema:
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        if inner := _LIST.fullmatch(kind):
            return {"type": "array", "items": self._of(inner[1], attribute, owner)}
        if inner := _MAP.fullmatch(kind):
            return {
                "type": "object",
                "additionalProperties": self._of(inner[1], attribute, owner),
            }
        if kind in self._files:
            if kind not in self._reader.defs:
                self._reader.defs[kind] = {}  # a type may hold itself
                self._reader.defs[kind] = self.schema(kind)
            return {"$ref": f"#/$defs/{kind}"}
        for file in self._core_files(kind):
            if file.exists():
                return self._reader.reference(file)
        message = f"{owner}.{attribute}: {kind} is no type that is known here"
        raise UnreadableError(message)

    def _core_files(self, kind: str) -> tuple[Path, ...]:
        return (
            self._core / f"IoK8sApiCore{kind}.js",
            self._core / f"{kind.replace('K8sIoApi', 'IoK8sApi', 1)}.js",
            self._machinery
            / f"{kind.replace('Resource', 'IoK8sApimachineryPkgApiResource', 1)}.js",
            self._machinery / f"IoK8sApimachineryPkgApisMeta{kind}.js",
        )
