"""Write strict JSON Schemas of custom resources, made from packages of npm's, PyPI's and Go's.

    python -m tests.crds.make FOLDER

A file `GROUP_KIND_VERSION.json` a kind, each whole in itself.
Nothing is done where the folder is up to date, or where the machine has no npm or no Go.
"""

import hashlib
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ruamel.yaml import YAML

from tests.crds.kserve_models import KServe
from tests.crds.packages import (
    CORE,
    GO,
    KSERVE,
    NPM,
    SCOPE,
    fetch,
    go_module,
    missing_programs,
)
from tests.crds.validators import Reader, Schema, UnreadableError, used

KINDS: Final = {
    "gateway-api": (
        "gateway.networking.k8s.io/v1",
        ("BackendTLSPolicy", "Gateway", "GRPCRoute", "HTTPRoute"),
    ),
    "prometheus-operator": (
        "monitoring.coreos.com/v1",
        ("PodMonitor", "PrometheusRule", "ServiceMonitor"),
    ),
    "keda": ("keda.sh/v1alpha1", ("ScaledObject", "TriggerAuthentication")),
    "cert-manager": ("cert-manager.io/v1", ("Certificate", "Issuer")),
    "argo-rollouts": ("argoproj.io/v1alpha1", ("AnalysisTemplate", "Rollout")),
}
"""Package ▸ API version and kinds."""
KSERVE_KINDS: Final = {
    "serving.kserve.io/v1beta1": ("InferenceService",),
    "serving.kserve.io/v1alpha1": ("ClusterServingRuntime", "ServingRuntime"),
}
_STAMP: Final = ".made-from"
_VALIDATOR: Final = re.compile(r'from"\.\./\.\./_schemas/([^"]+)"')
_ALIAS: Final = re.compile(r"export type \{ I\w+ as I(\w+),")
_COMMENTED: Final = re.compile(r'/\*\*((?:(?!\*/).)*)\*/\s*"([^"]+)"\??:', re.DOTALL)
_EXPERIMENTAL: Final = "<gateway:experimental>"


def make(folder: Path) -> int:
    """How many schemas were written into `folder`, in place of all that was there."""
    with tempfile.TemporaryDirectory() as work:
        source = Path(work)
        fetch(source)
        schemas = dict(_schemas(source))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, schema in schemas.items():
        text = json.dumps(schema, indent=1, sort_keys=True, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")
    (folder / _STAMP).write_text(_stamp())
    return len(schemas)


def is_up_to_date(folder: Path) -> bool:
    """Whether a folder's schemas were made from these pins by this code."""
    stamp = folder / _STAMP
    return stamp.exists() and stamp.read_text() == _stamp()


def _stamp() -> str:
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _schemas(source: Path) -> Iterator[tuple[str, Schema]]:
    npm = source / "npm"
    experimental = dict(_experimental(_package(npm, f"{SCOPE}gateway-api")))

    def file_of(importer: Path, name: str) -> Path:
        if name.startswith("./"):
            return importer.parent / name
        for package in sorted(NPM, key=len, reverse=True):
            if name.startswith(f"{package}/"):
                path = name.removeprefix(f"{package}/")
                return _package(npm, package) / f"{path.removesuffix('.js')}.js"
        message = f"{importer.name}: it imports {name}, of a package that is not pinned"
        raise UnreadableError(message)

    reader = Reader(file_of=file_of, hidden=lambda file: experimental.get(file.stem, set()))
    for package, (api, kinds) in KINDS.items():
        root = _package(npm, f"{SCOPE}{package}")
        for kind in kinds:
            model = (root / api / f"{kind}.js").read_text(encoding="utf-8")
            (file,) = _VALIDATOR.findall(model)
            schema = reader.schema(root / "_schemas" / file)
            made_from = f"{SCOPE}{package}@{NPM[SCOPE + package][0]}"
            yield _whole(api, kind, schema, reader.defs, made_from)
    kserve = KServe(
        source / "kserve" / "kserve" / "models",
        _package(npm, CORE) / "_schemas",
        _package(npm, f"{SCOPE}apimachinery") / "_schemas",
        reader,
    )
    for api, kinds in KSERVE_KINDS.items():
        for kind in kinds:
            version = api.rpartition("/")[2]
            schema = kserve.schema(f"{version.capitalize()}{kind}")
            yield _whole(api, kind, schema, reader.defs, f"kserve=={KSERVE[0]}")
    yield from crd_schemas(go_module())


def crd_schemas(module: Path) -> Iterator[tuple[str, Schema]]:
    """The schemas of the InferencePool's own CRD, in a Go module."""
    path = module / "config/crd/bases/inference.networking.k8s.io_inferencepools.yaml"
    spec = YAML(typ="safe").load(path)["spec"]
    (version,) = spec["versions"]
    schema = _closed(version["schema"]["openAPIV3Schema"])
    api = f"{spec['group']}/{version['name']}"
    yield _whole(api, spec["names"]["kind"], schema, {}, GO[0])


def _closed(schema: Schema) -> Schema:
    """An OpenAPI schema as strict JSON Schema."""
    kept = {
        key: value
        for key, value in schema.items()
        if key not in {"description", "default", "format"} and not key.startswith("x-")
    }
    if "items" in kept:
        kept["items"] = _closed(kept["items"])
    if "properties" in kept:
        kept["properties"] = {name: _closed(one) for name, one in kept["properties"].items()}
        kept["additionalProperties"] = False
    elif isinstance(kept.get("additionalProperties"), dict):
        kept["additionalProperties"] = _closed(kept["additionalProperties"])
    return kept


def _package(npm: Path, name: str) -> Path:
    return npm / name / "package"


def _experimental(package: Path) -> Iterator[tuple[str, set[str]]]:
    """Types of the Gateway API with the fields that clusters' standard channel leaves out."""
    for file in package.rglob("*.d.ts"):
        text = file.read_text(encoding="utf-8")
        alias = _ALIAS.search(text)
        fields = {name for comment, name in _COMMENTED.findall(text) if _EXPERIMENTAL in comment}
        if alias and fields:
            yield alias[1], fields


def _whole(
    api: str, kind: str, schema: Schema, defs: dict[str, Schema], made_from: str
) -> tuple[str, Schema]:
    """A kind's file; `metadata` is Kubernetes' matter, `status` its controller's."""
    properties = {key: schema_ for key, schema_ in schema["properties"].items() if key != "status"}
    properties |= {
        "apiVersion": {"const": api},
        "kind": {"const": kind},
        "metadata": {"type": "object"},
    }
    needed = {*schema.get("required", ()), "apiVersion", "kind", "metadata"} - {"status"}
    whole: Schema = {
        "$comment": f"made from {made_from}",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "required": sorted(needed),
    }
    whole["$defs"] = used(whole, defs)
    group, _, version = api.rpartition("/")
    return f"{group}_{kind.lower()}_{version}", whole


def main() -> None:
    """Write the schemas into the folder that the command line names."""
    folder = Path(sys.argv[1])
    if is_up_to_date(folder):
        return
    if missing := missing_programs():
        sys.stderr.write(f"no {' and no '.join(missing)}: tests of custom resources are skipped\n")
        return
    make(folder)


if __name__ == "__main__":
    main()
