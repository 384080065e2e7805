"""What the table calls expressed is in the documents: another value gives other documents."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from headrace import deploy
from headrace.deploy import TABLE, ExportOutcome, ExportTarget, NotExpressibleError
from headrace.deploy.features import explicit_settings, feature_of
from tests.unit.deploy.specs import EXPORTERS, facts_of, spec_of, split

_UNSEEN: Final = {
    ("Another's server", ExportTarget.GATEWAY_API): "a Service is named by an option",
    ("Code of the model's author", ExportTarget.KSERVE): "it only allows what would be refused",
    (
        "Code of the model's author",
        ExportTarget.ARGO_ROLLOUTS,
    ): "it only allows what would be refused",
    (
        "Isolation and memory of the replicas",
        ExportTarget.KSERVE,
    ): "a note only: pods have their own",
    (
        "Isolation and memory of the replicas",
        ExportTarget.ARGO_ROLLOUTS,
    ): "a note only: pods have their own",
    ("Network of the replicas", ExportTarget.KSERVE): "a note only: pods have a network",
    ("Network of the replicas", ExportTarget.ARGO_ROLLOUTS): "a note only: pods have a network",
    ("Tokens: keys from a URL", ExportTarget.AWS_APIGATEWAY): "a note only: the issuer says where",
    ("Size of a request", ExportTarget.AWS_APIGATEWAY): "the gateway behind it does it",
}
"""What is expressed without a word in the documents."""

_JWT: Final = {"name": "corp", "issuer": "https://id.test", "audiences": ["models"]}
_URL: Final = {**_JWT, "jwks_url": "https://id.test/keys"}
_PUBLIC: Final = ec.generate_private_key(ec.SECP256R1()).public_key()
_KEYS: Final = json.dumps({"keys": [json.loads(ECAlgorithm.to_jwk(_PUBLIC))]})
_PEMS: Final = {"certificate_file": "/tls/chain.pem", "key_file": "/tls/key.pem"}


def _e(**endpoint: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return {"endpoint": endpoint}


def _canary(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return _e(rollout={"strategy": "canary", **more})


def _chat(**endpoint: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    server = {"url": "http://llm.test", "protocol": "openai"}
    spare = {"name": "spare", "upstream": server}
    return {"endpoint": {"upstream": server, **endpoint}, "others": [spare]}


def _metrics(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return _canary(metrics=more)


def _green(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return _e(rollout={"strategy": "blue-green", **more})


def _scale(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return _e(autoscale=more)


def _limits(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return _e(limits=more)


def _each(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return _e(limits={"per_caller": more})


def _jwt(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return {"endpoint": {"access": ["jwt"]}, "auth": {"jwt": [{**_URL, **more}]}}


def _jwt_file(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    provider = {**_JWT, "jwks_file": "/keys.json", **more}
    return {"endpoint": {"access": ["jwt"]}, "auth": {"jwt": [provider]}}


def _gateway(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return {"gateway": more}


_OPENAI: Final = {"url": "https://m.test", "protocol": "openai"}


def _upstream(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return _e(upstream={"url": "https://m.test", **more})


def _tier(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return {"endpoint": {"access": ["jwt"]}, "auth": {"jwt": [_URL]}, "tiers": [more]}


def _rule(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    files = {**_PEMS, "client_ca_file": "/tls/clients.pem"}
    return {
        "endpoint": {"access": ["certificate"]},
        "gateway": {"tls": files},
        "auth": {"certificates": [{"name": "bank", **more}]},
    }


_CONNECTIONS: Final = {
    "max": (20, 30),
    "idle_timeout_s": (20.0, 30.0),
    "headers_timeout_s": (3.0, 4.0),
    "request_timeout_s": (20.0, 30.0),
    "max_memory_bytes": (1 << 28, 1 << 29),
}
_PODS: Final[dict[str, tuple[Any, Any]]] = {
    "image": ("registry.test/a:1", "registry.test/a:2"),
    "pull_policy": ("Always", "Never"),
    "pull_secrets": (["a"], ["b"]),
    "resources": ({"memory": "2Gi"}, {"memory": "3Gi"}),
    "node_selector": ({"disk": "ssd"}, {"disk": "hdd"}),
    "tolerations": ([{"key": "a"}], [{"key": "b"}]),
    "replica_env": ([{"name": "A", "value": "1"}], [{"name": "A", "secret": "s", "key": "k"}]),
    "service_account": ("a", "b"),
    "runtime_class": ("nvidia", "gvisor"),
    "priority_class": ("a", "b"),
    "pod_annotations": ({"a.test/b": "1"}, {"a.test/b": "2"}),
    "pod_labels": ({"team": "a"}, {"team": "b"}),
}
_PAIRS: Final[dict[str, tuple[dict[str, Any], dict[str, Any]]]] = {
    "name": (_e(name="fraud"), _e(name="other", model="fraud:2")),
    "shm": ({"kubernetes": {"shm_size": "1Gi"}}, {"kubernetes": {"shm_size": "2Gi"}}),
    "model": (_e(model="fraud:2"), _e(model="fraud:3")),
    "weights": (_e(versions=split(90, 10)), _e(versions=split(80, 20))),
    "upstream": (_e(upstream={"url": "http://a.test"}), _e(upstream={"url": "http://b.test"})),
    "upstream tls": (_upstream(tls={"ca_file": "/a.pem"}), _upstream(tls={"ca_file": "/b.pem"})),
    "upstream key": (
        _upstream(tls={"certificate_file": "/a.pem", "key_file": "/a.key"}),
        _upstream(tls={"certificate_file": "/a.pem", "key_file": "/b.key"}),
    ),
    "upstream's key": (_upstream(api_key_file="/a.key"), _upstream(api_key_file="/b.key")),
    "aliases": (
        _e(upstream=_OPENAI, aliases=[{"name": "a"}]),
        _e(upstream=_OPENAI, aliases=[{"name": "a", "version": "1"}]),
    ),
    "max requests": (_upstream(max_requests=7), _upstream(max_requests=8)),
    "health path": (_upstream(health_path="/a"), _upstream(health_path="/b")),
    "health interval": (_upstream(health_interval_s=3.0), _upstream(health_interval_s=4.0)),
    "replicas": (_e(replicas=2), _e(replicas=3)),
    "batching": (_e(batching={"max_batch_size": 2}), _e(batching={"max_batch_size": 3})),
    "padding": (
        _e(batching={"padding": {"axis": 2}}),
        _e(batching={"padding": {"axis": 3}}),
    ),
    "threads": (_e(batching={"intra_op_threads": 2}), _e(batching={"intra_op_threads": 3})),
    "labels": (_e(labels={"out": ["a"]}), _e(labels={"out": ["b"]})),
    "runtime": (_e(runtime="onnx"), _e(runtime="openvino")),
    "device": (_e(device="cpu"), _e(device="gpu")),
    "nulls": (_e(), _e(nulls="error")),
    "timeout": (_e(timeout_s=5), _e(timeout_s=7)),
    "slo": (
        _e(rollout={"strategy": "canary"}, slo={"latency_s": 0.1}),
        _e(rollout={"strategy": "canary"}, slo={"latency_s": 0.2}),
    ),
    "most replicas": (_scale(max_replicas=5), _scale(max_replicas=6)),
    "least replicas": (_scale(min_replicas=0), _scale(min_replicas=2)),
    "in flight": (_scale(target_in_flight=2), _scale(target_in_flight=3)),
    "stable window": (_scale(stable_window_s=30), _scale(stable_window_s=90)),
    "panic window": (_scale(panic_window_s=7), _scale(panic_window_s=30)),
    "panic ratio": (_scale(panic_ratio=2), _scale(panic_ratio=3)),
    "scale down": (_scale(scale_down_delay_s=30), _scale(scale_down_delay_s=60)),
    "idle": (_scale(idle_s=30), _scale(idle_s=60)),
    "steps": (_canary(steps=[{"weight": 10}]), _canary(steps=[{"weight": 20}])),
    "pauses": (
        _canary(steps=[{"weight": 10, "pause_s": 30}]),
        _canary(steps=[{"weight": 10, "pause_s": 70}]),
    ),
    "preview": (_green(preview_s=90), _green(preview_s=300)),
    "samples": (_canary(min_samples=50), _canary(min_samples=60)),
    "warm-up": (_canary(warmup_s=10), _canary(warmup_s=20)),
    "ready": (_canary(ready_timeout_s=10), _canary(ready_timeout_s=20)),
    "kept": (_green(keep_s=10), _green(keep_s=20)),
    "errors": (_metrics(errors={"margin": 0.1}), _metrics(errors={"margin": 0.2})),
    "most errors": (_metrics(errors={"max_ratio": 0.1}), _metrics(errors={"max_ratio": 0.2})),
    "no errors": (_metrics(errors=None), _metrics(rejections=None)),
    "rejections": (_metrics(rejections={"margin": 0.1}), _metrics(rejections={"margin": 0.2})),
    "quantile": (_metrics(latency={"quantile": 0.9}), _metrics(latency={"quantile": 0.5})),
    "ratio": (_metrics(latency={"margin_ratio": 2}), _metrics(latency={"margin_ratio": 3})),
    "margin": (_metrics(latency={"margin_s": 2}), _metrics(latency={"margin_s": 3})),
    "most": (_metrics(latency={"max_s": 2}), _metrics(latency={"max_s": 3})),
    "fallback": (_chat(fallback="spare"), _chat()),
    "header": (_e(sticky={"header": "a"}), _e(sticky={"header": "b"})),
    "cookie": (_e(sticky={"cookie": "a"}), _e(sticky={"cookie": "b"})),
    "claim": (_e(sticky={"claim": "a"}), _e(sticky={"claim": "b"})),
    "access": (_jwt(), {**_jwt(), "endpoint": {"access": "public"}}),
    "issuer": (_jwt_file(issuer="https://a.test"), _jwt_file(issuer="https://b.test")),
    "audiences": (_jwt(audiences=["a"]), _jwt(audiences=["b"])),
    "keys": (_jwt(jwks_url="https://a.test"), _jwt(jwks_url="https://b.test")),
    "cache": (_jwt(jwks_cache_s=60.0), _jwt(jwks_cache_s=90.0)),
    "skew": (_jwt(clock_skew_s=1), _jwt(clock_skew_s=2)),
    "caller": (_jwt(caller_claim="a"), _jwt(caller_claim="b")),
    "scope": (_jwt(scope_claim="a"), _jwt(scope_claim="b")),
    "tier claim": (_jwt(tier_claim="a"), _jwt(tier_claim="b")),
    "certificates": (_rule(dns="a.test"), _rule(dns="b.test")),
    "tiers": (
        _tier(name="gold", requests_per_s=5),
        _tier(name="gold", requests_per_s=6),
    ),
    "rate": (_limits(requests_per_s=5), _limits(requests_per_s=6)),
    "burst": (
        _limits(requests_per_s=5, burst=9),
        _limits(requests_per_s=5, burst=10),
    ),
    "day": (_limits(requests_per_day=5), _limits(requests_per_day=6)),
    "rate of each": (_each(requests_per_s=5), _each(requests_per_s=6)),
    "day of each": (_each(requests_per_day=5), _each(requests_per_day=6)),
    "burst of each": (_each(requests_per_s=5, burst=9), _each(requests_per_s=5, burst=10)),
    "size": (_limits(max_body_bytes=5000), _limits(max_body_bytes=6000)),
    "size at the gateway": (_gateway(max_body_bytes=5000), _gateway(max_body_bytes=6000)),
    "origins": (
        _gateway(cors={"allow_origins": ["https://a.test"]}),
        _gateway(cors={"allow_origins": ["https://b.test"]}),
    ),
    "host": (_gateway(host="127.0.0.2"), _gateway(host="127.0.0.3")),
    "port": (_gateway(http_port=81), _gateway(http_port=82)),
    "gRPC port": (_gateway(grpc_port=81), _gateway(grpc_port=82)),
    "certificate": (_gateway(tls=_PEMS), _gateway(tls={**_PEMS, "certificate_file": "/b.pem"})),
    "TLS version": (_gateway(tls=_PEMS), _gateway(tls={**_PEMS, "min_version": "1.3"})),
    "client authorities": (
        _gateway(tls={**_PEMS, "client_ca_file": "/a.pem"}),
        _gateway(tls={**_PEMS, "client_ca_file": "/b.pem"}),
    ),
    **{
        f"connections: {name}": (
            _gateway(connections={name: one}),
            _gateway(connections={name: other}),
        )
        for name, (one, other) in _CONNECTIONS.items()
    },
    **{
        f"pods: {name}": ({"kubernetes": {name: one}}, {"kubernetes": {name: other}})
        for name, (one, other) in _PODS.items()
    },
    **{
        f"pods of one: {name}": (
            {"kubernetes": {"endpoints": {"fraud": {name: one}}}},
            {"kubernetes": {"endpoints": {"fraud": {name: other}}}},
        )
        for name, (one, other) in _PODS.items()
    },
    "access log": (_gateway(access_log=False), _gateway(request_log={"mode": "all"})),
    "slow": (_gateway(request_log={"slow_s": 2.0}), _gateway(request_log={"slow_s": 3.0})),
    "own log": (_e(request_log={"mode": "all"}), _e(request_log={"mode": "off"})),
    "traces": (
        {"tracing": {"collector": "http://127.0.0.1:4318"}},
        {"tracing": {"collector": "http://127.0.0.1:4319"}},
    ),
}  # fmt: skip
"""Two specs each that differ in one setting."""


def _cases() -> list[Any]:
    return [
        pytest.param(name, target, id=f"{name}-{target.value}")
        for name in _PAIRS
        for target in ExportTarget
        if any(_is_expressed(feature, target) for feature in _rows(name))
    ]


def _rows(name: str) -> list[deploy.SpecFeature]:
    """The rows of what the two specs of a pair differ in, innermost settings only."""
    one, other = ({s.location: s for s in explicit_settings(_spec(each))} for each in _PAIRS[name])
    places = [
        place
        for place in {**one, **other}
        if place not in one or place not in other or one[place].value != other[place].value
    ]
    inner = [p for p in places if not any(q.startswith((f"{p}.", f"{p}[")) for q in places)]
    fields = [(one.get(place) or other[place]).field for place in inner]
    return [found[0] for field in fields if (found := feature_of(TABLE, field))]


def _is_expressed(feature: deploy.SpecFeature, target: ExportTarget) -> bool:
    outcome = feature.cells[target].outcome
    said = outcome in {ExportOutcome.EXPRESSED, ExportOutcome.APPROXIMATED}
    return said and (feature.title, target) not in _UNSEEN


def _spec(example: dict[str, Any]) -> Any:  # noqa: ANN401  # a SystemSpec
    top = {key: value for key, value in example.items() if key != "endpoint"}
    return spec_of(example.get("endpoint"), **top)


def _documents(example: dict[str, Any], target: ExportTarget) -> list[Any]:
    """The documents, whatever else is lost."""
    top = {key: value for key, value in example.items() if key != "endpoint"}
    facts = facts_of(example.get("endpoint"), key_sets={"corp": _KEYS}, **top)
    try:
        export = _EXPORTERS[target](facts)
    except NotExpressibleError as refused:
        fields = tuple(dict.fromkeys(loss.field for loss in refused.losses))
        export = _EXPORTERS[target](dataclasses.replace(facts, allowed=fields))
    return [document.body for document in export.documents]


_EXPORTERS: Final[dict[ExportTarget, Callable[[deploy.ExportFacts], deploy.Export]]] = {
    **EXPORTERS,
    # An HTTP API has no usage plans, and a REST API checks no tokens: both together say all.
    ExportTarget.AWS_APIGATEWAY: lambda facts: dataclasses.replace(
        (first := _aws(facts, "http")), documents=(*first.documents, *_aws(facts, "rest").documents)
    ),
}


def _aws(facts: deploy.ExportFacts, kind: Any) -> deploy.Export:  # noqa: ANN401  # one of two words
    return deploy.aws_apigateway(facts, deploy.AwsOptions(backend="http://gw:8000", kind=kind))


@pytest.mark.parametrize(("name", "target"), _cases())
def test_another_value_gives_other_documents(name: str, target: ExportTarget) -> None:
    one, other = _PAIRS[name]

    assert _documents(one, target) != _documents(other, target)


def test_every_row_that_is_expressed_somewhere_is_tried() -> None:
    tried = {row.title for name in _PAIRS for row in _rows(name)}
    expressed = {
        row.title for row in TABLE for target in ExportTarget if _is_expressed(row, target)
    }

    assert expressed - tried == set()
