"""Helm and its like, and whether Kubernetes would take an object; `make kube` brings them.

Core kinds are checked by `kubernetes-validate`, others by their projects' published schemas in
`tests/kube/crds`. A kind that neither knows is a mistake, not a pass.
"""

import functools
import json
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import pytest
from ruamel.yaml import YAML

KUBERNETES: Final = "1.37"
ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "charts" / "headrace"
CRDS: Final = Path(__file__).resolve().parent / "kube" / "crds"
_BIN: Final = ROOT / ".venv-kube" / "bin"
_RUN_WITHIN_S: Final = 120.0
_METADATA: Final = {"name", "namespace", "labels", "annotations", "ownerReferences", "generateName"}
_DNS_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

Object = dict[str, Any]


def program(name: str) -> Path:
    """A program of `.venv-kube`: `helm`, `kubectl`, `checkov`, or `python`, which has moto."""
    return _BIN / name


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips, with the reason, where one of these programs is not installed."""
    missing = [name for name in names if not program(name).exists()]
    reason = f"no {' or '.join(missing)} in .venv-kube: `make kube` installs them"
    return pytest.mark.skipif(bool(missing), reason=reason)


def run_program(
    name: str, *arguments: str | Path, text: str | None = None, within_s: float = _RUN_WITHIN_S
) -> tuple[int, str, str]:
    """A run's exit status, what it printed, and what it complained about."""
    command = [str(program(name)), *map(str, arguments)]
    done = subprocess.run(  # noqa: S603  # programs that the tests are about
        command, input=text, capture_output=True, text=True, check=False, timeout=within_s
    )
    return done.returncode, done.stdout, done.stderr


def helm(*arguments: str | Path, text: str | None = None) -> tuple[int, str, str]:
    """`helm ...`: exit status, output, complaints."""
    return run_program("helm", *arguments, text=text)


def rendered(
    values: Mapping[str, Any] | None = None,
    *arguments: str,
    chart: Path = CHART,
    release: str = "headrace",
    namespace: str = "models",
) -> list[Object]:
    """What `helm template` makes of values.

    Raises:
        AssertionError: It refused; the text is what it said.
    """
    status, output, said = helm(
        "template", release, chart, "--namespace", namespace, "--kube-version", KUBERNETES,
        "--values", "-", *arguments, text=json.dumps(values or {}),
    )  # fmt: skip
    assert status == 0, said
    return documents(output)


def documents(text: str) -> list[Object]:
    """The objects of a stream of YAML."""
    return [one for one in YAML(typ="safe").load_all(text) if one]


def complaints(objects: Iterable[Object]) -> list[str]:
    """What Kubernetes and the projects' schemas have against objects: object, place and message."""
    return [said for one in objects for said in _complaints(json.dumps(one, sort_keys=True))]


def crd_schema(api_version: str, kind: str) -> dict[str, Any] | None:
    """The strict JSON Schema of a custom resource; None if there is none here."""
    group, _, version = api_version.rpartition("/")
    path = CRDS / f"{group}_{kind.lower()}_{version}.json"
    return _strict_schema(path) if path.exists() else None


@functools.lru_cache(maxsize=4096)
def _complaints(text: str) -> tuple[str, ...]:
    one: Object = json.loads(text)
    name = f"{one.get('kind')}/{(one.get('metadata') or {}).get('name')}"
    return tuple(f"{name}: {said}" for said in (*_of_metadata(one), *_of_schema(one)))


def _of_schema(one: Object) -> Iterator[str]:
    schema = crd_schema(one["apiVersion"], one["kind"])
    if schema is not None:
        for error in jsonschema.Draft202012Validator(schema).iter_errors(one):
            yield f"{error.json_path}: {error.message[:300]}"
        return
    try:
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{error.json_path}: {error.message[:300]}"
    except kubernetes_validate.SchemaNotFoundError as error:
        yield f"nothing is known of {one['kind']} in {one['apiVersion']} ({error.message})"


def _of_metadata(one: Object) -> Iterator[str]:
    """What schemas of custom resources leave open, and no schema says of labels."""
    metadata = one.get("metadata") or {}
    if unknown := set(metadata) - _METADATA:
        yield f"$.metadata: unknown {sorted(unknown)}"
    if not _DNS_NAME.fullmatch(str(metadata.get("name", ""))):
        yield f"$.metadata.name: {metadata.get('name')!r} is no DNS name"
    template = (one.get("spec") or {}).get("template")
    pods = template.get("metadata") if isinstance(template, dict) else None
    for labels in (metadata.get("labels"), (pods or {}).get("labels")):
        for key, value in (labels or {}).items():
            if not isinstance(value, str) or not _LABEL.fullmatch(value):
                yield f"$.metadata.labels.{key}: {value!r} is no label"


@functools.cache
def _strict_schema(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    schema: dict[str, Any] = _strict(document["openAPIV3Schema"])
    schema["properties"]["apiVersion"] = {"const": f"{document['group']}/{document['version']}"}
    schema["properties"]["kind"] = {"const": document["kind"]}
    schema["required"] = sorted({*schema.get("required", ()), "apiVersion", "kind", "metadata"})
    return schema


def _strict(node: Any) -> Any:  # noqa: ANN401  # a part of a schema
    """OpenAPI's dialect as JSON Schema has it, where what is not named is not allowed."""
    if isinstance(node, list):
        return [_strict(one) for one in node]
    if not isinstance(node, dict):
        return node
    out = {
        key: {name: _strict(one) for name, one in value.items()}
        if key in {"properties", "$defs"}
        else (value if key in {"enum", "required"} else _strict(value))
        for key, value in node.items()
        if key != "nullable"
    }
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node
    if "properties" in node and not is_open:
        out["additionalProperties"] = False
    if node.get("nullable") and isinstance(node.get("type"), str):
        out["type"] = [node["type"], "null"]
    return out
