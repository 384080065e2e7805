import json
import re
from fractions import Fraction
from typing import Any, Final

import jsonschema
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from headrace.core import InvalidArgumentError
from headrace.deploy import ExportFacts, KongOptions, NotExpressibleError, kong
from tests.own_schemas import KONG
from tests.unit.deploy.specs import REPLICAS, facts_of, split

_JWT: Final = {
    "name": "corp",
    "issuer": "https://id.test",
    "audiences": ["models"],
    "jwks_file": "/keys/corp.json",
}
_NO_AUDIENCE: Final = ("auth.jwt[].audiences",)


def _config(facts: ExportFacts, **options: Any) -> dict[str, Any]:  # noqa: ANN401  # of KongOptions
    given = {"replicas": REPLICAS, **options}
    given["replicas"] = {
        key: value
        for key, value in given["replicas"].items()
        if any(key == (e.name, v.number) for e in facts.endpoints for v in e.versions)
    }
    return kong(facts, KongOptions(**given)).documents[0].body


def _service(config: dict[str, Any], name: str = "fraud") -> dict[str, Any]:
    return next(each for each in config["services"] if each["name"] == name)


def _plugins(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {plugin["name"]: plugin["config"] for plugin in _service(config)["plugins"]}


@given(
    first=st.integers(1, 99),
    counts=st.tuples(st.integers(1, 60), st.integers(1, 60)),
)
def test_versions_keep_their_shares_whatever_their_replicas(
    first: int, counts: tuple[int, int]
) -> None:
    ways = {
        ("fraud", str(number)): [f"10.0.{number}.{i}:8000" for i in range(count)]
        for number, count in enumerate(counts, 1)
    }
    config = _config(facts_of({"versions": split(first, 100 - first)}), replicas=ways)

    targets = next(u for u in config["upstreams"] if u["name"] == "fraud.headrace")["targets"]
    total = sum(target["weight"] for target in targets)
    mine = sum(t["weight"] for t in targets if t["target"].startswith("10.0.1."))
    assert abs(Fraction(mine, total) - Fraction(first, 100)) < Fraction(1, 500)
    if max(counts) <= 7:
        assert Fraction(mine, total) == Fraction(first, 100)
    assert max(target["weight"] for target in targets) <= 65_535


@pytest.mark.parametrize(
    ("path", "service"),
    [
        ("/v2/models/fraud/infer", "fraud"),
        ("/v2/models/fraud", "fraud"),
        ("/v1/models/fraud:predict", "fraud"),
        ("/v2/models/fraud/versions/2/infer", "fraud.2"),
        ("/v2/models/fraudster/infer", None),
        ("/v2/models/fraud/versions/22/infer", "fraud"),
    ],
)
def test_paths_lead_where_our_own_gateway_leads_them(path: str, service: str | None) -> None:
    config = _config(facts_of({"versions": split(90, 10)}))

    matches = [
        (route["regex_priority"], each["name"])
        for each in config["services"]
        for route in each["routes"]
        for pattern in route["paths"]
        if re.match(pattern.removeprefix("~"), path)
    ]
    assert max(matches, default=(0, None))[1] == service


def test_a_dot_in_a_name_is_only_a_dot() -> None:
    facts = facts_of({"name": "fraud.v1", "versions": split(100)})
    config = _config(facts, replicas={("fraud.v1", "1"): ["10.0.0.1:8000"]})

    pattern = config["services"][0]["routes"][0]["paths"][0].removeprefix("~")
    assert re.match(pattern, "/v2/models/fraud.v1/infer")
    assert not re.match(pattern, "/v2/models/fraudxv1/infer")


@pytest.mark.parametrize(
    ("rate", "window"),
    [(5, {"second": 5}), (0.5, {"minute": 30}), (0.01, {"hour": 36}), (1 / 60, {"minute": 1})],
)
def test_a_rate_becomes_the_smallest_window_that_it_is_whole_in(
    rate: float, window: dict[str, int]
) -> None:
    limit = _plugins(_config(facts_of({"limits": {"requests_per_s": rate}})))["rate-limiting"]

    assert {
        key: limit[key] for key in ("second", "minute", "hour", "day") if key in limit
    } == window


def test_a_rate_that_is_whole_in_no_window_is_refused() -> None:
    with pytest.raises(NotExpressibleError, match=r"limits\.requests_per_s: counts whole requests"):
        _config(facts_of({"limits": {"requests_per_s": 3.14159265}}))


def test_limits_of_all_and_of_each_cannot_stand_together() -> None:
    limits = {"requests_per_s": 100, "per_caller": {"requests_per_s": 5}}
    with pytest.raises(
        NotExpressibleError, match=r"limits\.per_caller: allows one limit of a kind"
    ):
        _config(facts_of({"limits": limits}))


def test_a_public_endpoint_asks_for_nothing() -> None:
    config = _config(facts_of())

    assert set(_plugins(config)) == {"request-size-limiting", "request-transformer"}
    assert "consumers" not in config


def test_an_endpoint_that_says_nothing_asks_for_a_key() -> None:
    plugins = _plugins(_config(facts_of({"access": None})))

    assert plugins["key-auth"]["key_names"] == ["x-api-key"]
    assert plugins["key-auth"]["hide_credentials"] is True
    assert "anonymous" not in plugins["key-auth"]


@pytest.mark.parametrize("kind", ["RSA", "EC"])
def test_a_key_or_a_token_lets_in_and_a_stranger_is_refused(kind: str) -> None:
    key: Any
    if kind == "RSA":
        key = rsa.generate_private_key(65537, 2048).public_key()
        jwk = json.loads(RSAAlgorithm.to_jwk(key))
    else:
        key = ec.generate_private_key(ec.SECP256R1()).public_key()
        jwk = json.loads(ECAlgorithm.to_jwk(key))
    facts = facts_of(
        {"access": ["key", "jwt"]},
        auth={"jwt": [_JWT]},
        key_sets={"corp": json.dumps({"keys": [jwk]})},
        allowed=_NO_AUDIENCE,
    )

    config = _config(facts)

    plugins = _plugins(config)
    assert plugins["key-auth"]["anonymous"] == plugins["jwt"]["anonymous"] == "headrace-stranger"
    people = {consumer["username"]: consumer for consumer in config["consumers"]}
    (refusal,) = people["headrace-stranger"]["plugins"]
    assert refusal["config"]["status_code"] == 401
    (secret,) = people["headrace-jwt-corp"]["jwt_secrets"]
    assert (secret["key"], secret["algorithm"]) == ("https://id.test", f"{kind[0]}S256")
    assert load_pem_public_key(secret["rsa_public_key"].encode()) == key
    assert [e.message for e in jsonschema.Draft202012Validator(KONG).iter_errors(config)] == []


@pytest.mark.parametrize(
    "text", ["[]", "{}", "no JSON", '{"keys": [{"kty": "RSA", "n": "!", "e": 1}]}']
)
def test_a_broken_key_set_is_told(text: str) -> None:
    facts = facts_of(
        {"access": ["jwt"]},
        auth={"jwt": [_JWT]},
        key_sets={"corp": text},
        allowed=_NO_AUDIENCE,
    )
    with pytest.raises(InvalidArgumentError, match="not a JSON Web Key Set"):
        _config(facts)


def test_several_keys_of_one_issuer_are_refused() -> None:
    jwk = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key()))
    facts = facts_of(
        {"access": ["jwt"]},
        auth={"jwt": [_JWT]},
        key_sets={"corp": json.dumps({"keys": [jwk, jwk]})},
        allowed=_NO_AUDIENCE,
    )
    with pytest.raises(NotExpressibleError, match=r"jwks_file: .* this file has 2"):
        _config(facts)


def test_one_of_several_issuers_cannot_be_asked_for() -> None:
    other = {**_JWT, "name": "other", "issuer": "https://other.test"}
    with pytest.raises(NotExpressibleError, match="accepts tokens of all"):
        _config(facts_of({"access": ["jwt:corp"]}, auth={"jwt": [_JWT, other]}))


@pytest.mark.parametrize(
    ("upstream", "field"),
    [
        ({"url": "http://m.test/path"}, "upstream.url"),
        ({"url": "grpc://m.test"}, "upstream.url"),
        ({"url": "http://m.test", "model": "other"}, "upstream.model"),
        ({"url": "http://m.test", "protocol": "openai"}, "upstream.protocol"),
    ],
)
def test_servers_that_targets_cannot_name_are_refused(upstream: dict[str, str], field: str) -> None:
    with pytest.raises(NotExpressibleError, match=re.escape(field)):
        kong(facts_of({"upstream": upstream}), KongOptions(replicas={}))


def test_a_split_over_two_schemes_is_refused() -> None:
    versions = [
        {"upstream": {"url": "https://m.test"}, "weight": 50},
        {"upstream": {"url": "http://n.test"}, "version": "2", "weight": 50},
    ]
    with pytest.raises(NotExpressibleError, match="one protocol for a whole split"):
        kong(facts_of({"versions": versions}), KongOptions(replicas={}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, r"endpoints\[0\]: version 2"),
        ({("fraud", "2"): ["a:1"], ("fraud", "9"): ["a:1"]}, "fraud:9: version does not exist"),
    ],
)
def test_addresses_have_to_be_known(given: dict[tuple[str, str], list[str]], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        kong(facts_of(), KongOptions(replicas=given))


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"versions": split(70, 30), "sticky": {"cookie": "user"}},
        {"access": ["key"], "limits": {"requests_per_s": 5, "max_body_bytes": 5000}},
        {"access": None, "limits": {"per_caller": {"requests_per_day": 5}}, "timeout_s": None},
        {"sticky": {"header": "x-user-id"}, "versions": split(70, 30)},
    ],
)
def test_every_field_is_one_that_kong_documents(said: dict[str, Any]) -> None:
    config = _config(facts_of(said), grpc_replicas={("fraud", "2"): ["10.0.0.3:8001"]})

    assert [e.message for e in jsonschema.Draft202012Validator(KONG).iter_errors(config)] == []
