import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes.names import labels_of
from headrace.control.model.desired import make_revision
from headrace.core import EndpointName, InvalidArgumentError, ReplicaSettings
from headrace.core.headers import INTERNAL_HEADERS
from headrace.deploy import (
    ClusterTarget,
    GatewayApiOptions,
    LiveEndpoint,
    NotExpressibleError,
    VersionShare,
    gateway_api,
    read_facts,
)
from headrace.deploy.gateway_api import duration
from tests.kube import complaints
from tests.unit.deploy.specs import ARTIFACTS, bodies, facts_of, spec_of, split

_UNITS_MS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}


def _export(
    said: dict[str, object], place: ClusterTarget | None = None, **options: object
) -> list[dict[str, object]]:
    chosen = GatewayApiOptions(**options)  # type: ignore[arg-type]  # each by its own name
    return bodies(gateway_api(facts_of(said), place or ClusterTarget(), chosen))


@given(st.integers(0, 86_400_000))
def test_a_duration_is_what_it_says(value_ms: int) -> None:
    text = duration(value_ms / 1000)

    parts = re.findall(r"(\d{1,5})(h|ms|m|s)", text)
    assert "".join(f"{count}{unit}" for count, unit in parts) == text
    assert sum(int(count) * _UNITS_MS[unit] for count, unit in parts) == value_ms


def test_a_split_is_told_with_its_weights_and_each_version_by_its_number() -> None:
    (http, grpc, _) = _export({"versions": split(90, 10), "timeout_s": 2})

    one, two, both = http["spec"]["rules"]  # type: ignore[index]  # as JSON has it
    assert one["matches"][0]["path"]["value"] == "/v2/models/fraud/versions/1"
    assert two["backendRefs"] == [{"name": "headrace-fraud-2", "port": 8000}]
    assert [(r["name"], r["weight"]) for r in both["backendRefs"]] == [
        ("headrace-fraud-1", 90),
        ("headrace-fraud-2", 10),
    ]
    assert [m["path"]["value"] for m in both["matches"]] == [
        "/v2/models/fraud",
        "/v1/models/fraud",
        "/v1/models/fraud:predict",
    ]
    assert both["timeouts"] == {"request": "2s500ms"}
    assert grpc["kind"] == "GRPCRoute"
    assert grpc["spec"]["rules"][-1]["backendRefs"][0]["port"] == 8001  # type: ignore[index]  # as JSON has it


def test_a_version_of_weight_zero_is_reached_by_its_number_only() -> None:
    http, *_ = _export({"versions": split(100, 0)})

    rules = http["spec"]["rules"]  # type: ignore[index]  # as JSON has it
    assert [ref["name"] for ref in rules[-1]["backendRefs"]] == ["headrace-fraud-1"]
    assert [ref["name"] for ref in rules[1]["backendRefs"]] == ["headrace-fraud-2"]


def test_callers_cannot_set_what_only_a_gateway_may() -> None:
    for route in _export({"versions": split(90, 10)}):
        for rule in route["spec"]["rules"]:  # type: ignore[index]  # as JSON has it
            assert rule["filters"][0]["requestHeaderModifier"]["remove"] == list(INTERNAL_HEADERS)


def test_an_endpoint_that_says_nothing_of_access_is_not_opened() -> None:
    with pytest.raises(NotExpressibleError) as caught:
        _export({"access": None})

    (loss,) = caught.value.losses
    assert loss.location == "endpoints[0].access"
    assert "this target does not authenticate" in loss.why


def test_anothers_server_needs_a_service() -> None:
    said: dict[str, object] = {"upstream": {"url": "http://10.0.0.1:9000"}, "version": "7"}
    with pytest.raises(NotExpressibleError, match="--service fraud:7=NAME:PORT"):
        _export(said)

    place = ClusterTarget(services={("fraud", "7"): ("elsewhere", 9000)})
    http, *_ = _export(said, place)
    assert http["spec"]["rules"][0]["backendRefs"] == [{"name": "elsewhere", "port": 9000}]  # type: ignore[index]  # as JSON has it


def test_a_split_over_more_versions_than_a_rule_takes_is_refused() -> None:
    with pytest.raises(
        NotExpressibleError, match=r"versions: splits between at most 16 versions, .* 20"
    ):
        _export({"versions": split(*[5] * 20)})


_KNOWN = {("fraud", "1"): "a1b2c3d4e5f60718", ("fraud", "2"): "0f1e2d3c4b5a6978"}


def test_a_service_is_called_as_the_driver_calls_it_where_the_revision_is_known() -> None:
    facts = read_facts(spec_of({"versions": split(90, 10)}), artifacts=ARTIFACTS, revisions=_KNOWN)

    export = gateway_api(facts, ClusterTarget(instance="prod"), GatewayApiOptions())

    http, _ = bodies(export)
    assert {ref["name"] for rule in http["spec"]["rules"] for ref in rule["backendRefs"]} == {
        "prod-fraud-1-a1b2c3d4",
        "prod-fraud-2-0f1e2d3c",
    }
    assert not [note for note in export.notes if "are assumed to be named" in note]


def test_the_drivers_services_have_no_grpc_and_a_note_says_so() -> None:
    facts = read_facts(spec_of(), artifacts=ARTIFACTS, revisions=_KNOWN)

    export = gateway_api(facts, ClusterTarget(), GatewayApiOptions())

    assert {one["kind"] for one in bodies(export)} == {"HTTPRoute"}
    assert [note for note in export.notes if "no GRPCRoute" in note]
    assert not [note for note in export.notes if "need port 8001" in note]


def test_others_services_are_named_before_the_drivers_and_may_have_grpc() -> None:
    place = ClusterTarget(services={("fraud", "2"): ("elsewhere", 9000)})
    facts = read_facts(spec_of(), artifacts=ARTIFACTS, revisions=_KNOWN)

    export = gateway_api(facts, place, GatewayApiOptions())

    http, grpc, _ = bodies(export)
    assert http["spec"]["rules"][0]["backendRefs"] == [{"name": "elsewhere", "port": 9000}]
    assert grpc["spec"]["rules"][0]["backendRefs"] == [{"name": "elsewhere", "port": 8001}]


def test_a_service_whose_name_nobody_knows_has_a_plain_one_and_a_note_says_so() -> None:
    export = gateway_api(
        facts_of({"versions": split(90, 10)}), ClusterTarget(), GatewayApiOptions()
    )

    (told,) = [note for note in export.notes if "are assumed to be named" in note]
    assert "headrace-fraud-1 (endpoints[0].versions[0])" in told
    assert "headrace-fraud-2 (endpoints[0].versions[1])" in told


def test_a_running_revisions_id_counts_before_that_of_a_spec() -> None:
    shares = (VersionShare(version="2", weight=100, model="fraud:2", revision="77" * 8),)
    facts = read_facts(
        spec_of(),
        artifacts=ARTIFACTS,
        revisions=_KNOWN,
        observed={"fraud": LiveEndpoint(shares=shares)},
    )

    http, _ = bodies(gateway_api(facts, ClusterTarget(), GatewayApiOptions()))

    (backend,) = http["spec"]["rules"][0]["backendRefs"]
    assert backend["name"] == "headrace-fraud-2-77777777"


def test_replicas_without_grpc_get_no_grpc_route() -> None:
    kinds = {route["kind"] for route in _export({}, grpc=False)}

    assert kinds == {"HTTPRoute"}


def test_a_server_that_may_be_left_out_has_no_route_to_a_service_that_is_not_there() -> None:
    versions = [
        {"model": "fraud:1", "weight": 90},
        {"version": "2", "upstream": {"url": "http://other:9000"}, "weight": 10},
    ]
    facts = facts_of({"versions": versions}, allowed=["endpoints[].versions[].upstream"])
    alone = facts_of({"upstream": {"url": "http://o:9000"}}, allowed=["endpoints[].upstream"])

    http, *_ = bodies(gateway_api(facts, ClusterTarget(), GatewayApiOptions()))
    nothing = gateway_api(alone, ClusterTarget(), GatewayApiOptions())

    names = {ref["name"] for rule in http["spec"]["rules"] for ref in rule["backendRefs"]}
    assert names == {"headrace-fraud-1"}
    assert nothing.documents == ()
    assert any("left out" in note for note in nothing.notes)


_LLM: dict[str, object] = {"name": "chat", "runtime": "gguf", "versions": split(90, 10)}
_OPENAI_PATHS = {
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"),
    *("/v1/rerank", "/v2/rerank", "/v1/audio"),
}


def _llm_rules(document: dict[str, object]) -> list[tuple[list[str], list[object]]]:
    """Models in the header, and backends, of the rules of a language model."""
    rules = document["spec"]["rules"]  # type: ignore[index]  # as JSON has it
    assert all({m["path"]["value"] for m in rule["matches"]} == _OPENAI_PATHS for rule in rules)
    assert all(rule["timeouts"] == {"request": "0s"} for rule in rules)
    return [
        (
            sorted({h["value"] for m in rule["matches"] for h in m.get("headers", ())}),
            rule["backendRefs"],
        )
        for rule in rules
    ]


def test_a_language_model_has_routes_of_openais_api_alone() -> None:
    http, server = _export({**_LLM, "timeout_s": 2})

    one, two, both = _llm_rules(http)
    assert one == (["chat:1"], [{"name": "headrace-chat-1", "port": 8003}])
    assert two == (["chat:2"], [{"name": "headrace-chat-2", "port": 8003}])
    assert both == (
        [],
        [
            {"name": "headrace-chat-1", "port": 8003, "weight": 90},
            {"name": "headrace-chat-2", "port": 8003, "weight": 10},
        ],
    )
    assert server["metadata"]["name"] == "headrace-server"  # type: ignore[index]  # as JSON has it
    assert complaints([http, server]) == []


def test_several_language_models_are_told_apart_by_a_header() -> None:
    facts = facts_of({**_LLM}, others=[{**_LLM, "name": "other", "access": "public"}])
    export = gateway_api(facts, ClusterTarget(), GatewayApiOptions())

    chat, other, _ = bodies(export)
    assert _llm_rules(chat)[-1][0] == ["chat"]
    assert _llm_rules(other)[-1][0] == ["other"]
    assert any("X-Gateway-Model-Name" in note for note in export.notes)


def test_language_models_go_to_inference_pools() -> None:
    objects = bodies(
        gateway_api(
            facts_of({**_LLM}, others=[{"name": "fraud", "model": "fraud:1", "access": "public"}]),
            ClusterTarget(instance="prod", namespace="ml"),
            GatewayApiOptions(inference_pool=True),
        )
    )

    one, two, http, fraud, *_ = objects
    assert complaints(objects) == []
    assert one["apiVersion"] == "inference.networking.k8s.io/v1"
    assert one["metadata"]["namespace"] == "ml"
    assert one["spec"] == {
        "selector": {
            "matchLabels": {
                "app.kubernetes.io/instance": "prod",
                "app.kubernetes.io/component": "replica",
                "headrace.dev/endpoint": "chat",
                "headrace.dev/version": "1",
            }
        },
        "targetPorts": [{"number": 8003}],
        "endpointPickerRef": {
            "name": "prod-chat-1-epp",
            "port": {"number": 9002},
            "failureMode": "FailOpen",
        },
    }
    group = "inference.networking.k8s.io"
    pools = [{"group": group, "kind": "InferencePool", "name": f"prod-chat-{i}"} for i in (1, 2)]
    assert [pool["metadata"]["name"] for pool in (one, two)] == [pool["name"] for pool in pools]
    assert _llm_rules(http)[-1][1] == [{**pools[0], "weight": 90}, {**pools[1], "weight": 10}]
    assert fraud["spec"]["rules"][0]["backendRefs"] == [{"name": "prod-fraud-1", "port": 8000}]


def test_inference_pools_select_the_drivers_pods() -> None:
    settings = ReplicaSettings(model_name="chat", model_version="1", path="m.gguf", runtime="gguf")
    revision = make_revision(endpoint=EndpointName("chat"), model="chat:1", settings=settings)

    pool, *_ = _export({**_LLM}, inference_pool=True)

    wanted = pool["spec"]["selector"]["matchLabels"]  # type: ignore[index]  # as JSON has it
    assert wanted.items() <= labels_of(revision).items()


def test_inference_pools_need_a_language_model() -> None:
    with pytest.raises(InvalidArgumentError, match="no exported endpoint is one"):
        _export({}, inference_pool=True)


def test_a_service_of_an_openai_server_needs_no_pool() -> None:
    said: dict[str, object] = {
        "upstream": {"url": "http://10.0.0.1:9000", "protocol": "openai"},
        "version": "7",
    }
    place = ClusterTarget(services={("fraud", "7"): ("vllm", 8000)})
    http, *_ = _export(said, place, inference_pool=True)

    assert _llm_rules(http)[-1][1] == [{"name": "vllm", "port": 8000, "weight": 100}]
