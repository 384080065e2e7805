"""Helm, kubectl and checks of Kubernetes objects; `make setup ENV=kube` installs the programs.

Core kinds are checked by `kubernetes-validate`, others by schemas that the same command makes
from published packages. A kind that none of them knows is a mistake, not a pass.
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
REGISTRY: Final = "registry.example/ml"
ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "charts" / "headrace"
CRDS: Final = ROOT / ".venv-kube" / "crds"
"""Made schemas: strict, one file `GROUP_KIND_VERSION.json` a kind."""
MADE_GROUPS: Final = {
    "argoproj.io", "cert-manager.io", "gateway.networking.k8s.io", "inference.networking.k8s.io",
    "keda.sh", "monitoring.coreos.com", "serving.kserve.io",
}  # fmt: skip
_NO_CRDS: Final = (
    "no schemas of custom resources in .venv-kube: `make setup ENV=kube` makes them if npm "
    "and Go are installed"
)
_BIN: Final = ROOT / ".venv-kube" / "bin"
_RUN_WITHIN_S: Final = 120.0
_METADATA: Final = {"name", "namespace", "labels", "annotations", "ownerReferences", "generateName"}
_DNS_NAME: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_LABEL: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")

Object = dict[str, Any]


def program(name: str) -> Path:
    """A program of `.venv-kube`, such as `helm`, `kubectl` or `python`, which has moto."""
    return _BIN / name


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips, with the reason, where one of these programs is not installed."""
    missing = [name for name in names if not program(name).exists()]
    reason = f"no {' or '.join(missing)} in .venv-kube: `make setup ENV=kube` installs them"
    return pytest.mark.skipif(bool(missing), reason=reason)


def needs_crds() -> pytest.MarkDecorator:
    """Skips, with the reason, where the schemas of custom resources were not made."""
    return pytest.mark.skipif(not CRDS.is_dir(), reason=_NO_CRDS)


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
    """What `helm template` makes of values, with images of `REGISTRY` if they name no other.

    Raises:
        AssertionError: It refused; the text is what it said.
    """
    told = dict(values or {})
    told["image"] = {"registry": REGISTRY, **told.get("image", {})}
    status, output, said = helm(
        "template", release, chart, "--namespace", namespace, "--kube-version", KUBERNETES,
        "--values", "-", *arguments, text=json.dumps(told),
    )  # fmt: skip
    assert status == 0, said
    return documents(output)


def documents(text: str) -> list[Object]:
    """The objects of a stream of YAML."""
    return [one for one in YAML(typ="safe").load_all(text) if one]


def complaints(objects: Iterable[Object]) -> list[str]:
    """What Kubernetes and the projects' schemas have against objects: object, place and message.

    Skips the test where all that could be checked is right and the schemas of others are not here.
    """
    given = list(objects)
    found = [said for one in given for said in _complaints(json.dumps(one, sort_keys=True))]
    if not found and any(_is_unchecked(one) for one in given):
        pytest.skip(_NO_CRDS)
    return found


def crd_schema(api_version: str, kind: str) -> dict[str, Any] | None:
    """The strict JSON Schema of a custom resource; None if there is none here."""
    group, _, version = api_version.rpartition("/")
    path = CRDS / f"{group}_{kind.lower()}_{version}.json"
    return _made(path) if path.exists() else None


def _is_unchecked(one: Object) -> bool:
    return not CRDS.is_dir() and one["apiVersion"].rpartition("/")[0] in MADE_GROUPS


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
    if _is_unchecked(one):
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
def _made(path: Path) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return schema
