"""Specs and the facts in them, made short."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import BaseModel

from headrace import deploy
from headrace.core.spec.base import model_of
from headrace.core.spec.parse import SystemSpec, parse_spec
from headrace.core.spec.part import SpecPart
from headrace.deploy import (
    Artifact,
    ClusterTarget,
    Export,
    ExportFacts,
    ExportTarget,
    LiveEndpoint,
    PodOptions,
)

REPLICAS: Final = {
    ("fraud", "1"): ["10.0.0.1:8000", "10.0.0.2:8000"],
    ("fraud", "2"): ["10.0.0.3:8000"],
}
ARTIFACTS: Final = {
    f"fraud:{number}": Artifact(
        filename="model.onnx", version=number, digest=f"sha256:{number * 64}", runtime="onnx"
    )
    for number in ("1", "2", "3")
}
PODS: Final = PodOptions(artifacts="s3://models", image_registry="registry.test")


def split(*weights: int) -> list[dict[str, Any]]:
    """Versions 1, 2, ... of `fraud`."""
    return [{"model": f"fraud:{i}", "weight": weight} for i, weight in enumerate(weights, 1)]


def spec_of(
    endpoint: Mapping[str, Any] | None = None,
    *,
    others: Sequence[Mapping[str, Any]] = (),
    **top: Any,  # noqa: ANN401  # as a file has it
) -> SystemSpec:
    """A spec with one public endpoint and perhaps others; `endpoint` says more of the first."""
    given: dict[str, Any] = {"name": "fraud", "access": "public", **(endpoint or {})}
    if "upstream" not in given and "versions" not in given:
        given.setdefault("model", "fraud:2")
    return parse_spec({"version": 1, "endpoints": [given, *others], **top})


def facts_of(
    endpoint: Mapping[str, Any] | None = None,
    *,
    allowed: Sequence[str] = (),
    observed: Mapping[str, LiveEndpoint] | None = None,
    key_sets: Mapping[str, str] | None = None,
    artifacts: Mapping[str, Artifact] | None = None,
    **top: Any,  # noqa: ANN401  # as a file has it
) -> ExportFacts:
    return deploy.read_facts(
        spec_of(endpoint, **top),
        artifacts=ARTIFACTS if artifacts is None else artifacts,
        allowed=allowed,
        observed=observed,
        key_sets=key_sets,
    )


def _replicas(facts: ExportFacts) -> dict[tuple[str, str], list[str]]:
    return {
        (e.name, v.number): REPLICAS.get((e.name, v.number), ["10.0.0.9:8000"])
        for e in facts.endpoints
        for v in e.versions
        if v.upstream is None
    }


EXPORTERS: Final[Mapping[ExportTarget, Callable[[ExportFacts], Export]]] = {
    ExportTarget.GATEWAY_API: lambda f: deploy.gateway_api(
        f, ClusterTarget(), deploy.GatewayApiOptions()
    ),
    ExportTarget.KSERVE: lambda f: deploy.kserve(
        f,
        ClusterTarget(),
        deploy.KserveOptions(storage="s3://models/{model}/{version}/{file}", pods=PODS),
    ),
    ExportTarget.ARGO_ROLLOUTS: lambda f: deploy.argo_rollouts(
        f, ClusterTarget(), deploy.ArgoOptions(pods=PODS)
    ),
    ExportTarget.KONG: lambda f: deploy.kong(f, deploy.KongOptions(replicas=_replicas(f))),
    ExportTarget.AWS_APIGATEWAY: lambda f: deploy.aws_apigateway(
        f, deploy.AwsOptions(backend="https://models.example.com")
    ),
    ExportTarget.ENVOY: lambda f: deploy.envoy(
        f, deploy.EnvoyOptions(replicas=_replicas(f), descriptors=b"descriptors")
    ),
}
"""Each target, with options that suit any of these specs."""


def bodies(export: Export, kind: str = "") -> list[dict[str, Any]]:
    """The documents, or those of one kind."""
    return [d.body for d in export.documents if not kind or d.body.get("kind") == kind]


def known_fields(model: type[BaseModel], field: str = "") -> Iterator[str]:
    """Every field that a document of this model may have, outer ones first."""
    for name, info in model.model_fields.items():
        here = f"{field}.{name}" if field else name
        yield here
        for inner, is_one_of in _models(info.annotation):
            yield from known_fields(inner, f"{here}[]" if is_one_of else here)


def _models(
    annotation: object, *, is_one_of: bool = False
) -> Iterator[tuple[type[BaseModel], bool]]:
    """The models that a value of this type may hold, and whether in a list or a mapping."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel | SpecPart):
        yield model_of(annotation), is_one_of
        return
    origin = get_origin(annotation)
    inside = is_one_of or origin in {tuple, list, dict, Mapping}
    if inside or origin in {Union, UnionType, Annotated}:
        for argument in get_args(annotation):
            yield from _models(argument, is_one_of=inside)
