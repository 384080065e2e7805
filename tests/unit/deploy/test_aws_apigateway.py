from typing import Any

import pytest

from headrace.core import InvalidArgumentError
from headrace.deploy import AwsOptions, NotExpressibleError, aws_apigateway
from tests.unit.deploy.specs import facts_of

_CORP = {
    "name": "corp",
    "issuer": "https://id.test",
    "audiences": ["models"],
    "jwks_url": "https://id.test/keys",
}
_OTHER = {**_CORP, "name": "other", "issuer": "https://other.test"}
_INFER = "/v2/models/fraud/infer"
_ARN = "arn:aws:elasticloadbalancing:eu-central-1:1:listener/net/x/y/z"


def _api(said: dict[str, Any], *, kind: str = "http", **more: Any) -> dict[str, Any]:  # noqa: ANN401  # options and top of a spec
    link = more.pop("vpc_link", "")
    backend = more.pop("backend", "http://gw:8000/")
    options = AwsOptions(backend=backend, kind=kind, vpc_link=link)  # type: ignore[arg-type]  # one of two
    return aws_apigateway(facts_of(said, **more), options).documents[0].body


def _stage(said: dict[str, Any], kind: str, **top: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    options = AwsOptions(backend="http://gw:8000", kind=kind)  # type: ignore[arg-type]  # one of two
    body: dict[str, Any] = aws_apigateway(facts_of(said, **top), options).documents[1].body
    return body


def test_a_run_goes_to_the_gateway_behind_with_its_timeout() -> None:
    operation = _api({"timeout_s": 2.5})["paths"][_INFER]["post"]

    assert operation["x-amazon-apigateway-integration"] == {
        "type": "http_proxy",
        "httpMethod": "POST",
        "uri": "http://gw:8000/v2/models/fraud/infer",
        "timeoutInMillis": 2500,
        "payloadFormatVersion": "1.0",
    }


def test_only_tokens_are_checked_before_and_only_where_nothing_else_lets_in() -> None:
    auth = {"jwt": [_CORP, _OTHER]}
    one = _api({"access": ["jwt:other"]}, auth=auth)
    either = _api({"access": ["jwt:other", "key"]}, auth=auth)
    several = _api({"access": ["jwt"]}, auth=auth)

    assert one["paths"][_INFER]["post"]["security"] == [{"other": []}]
    scheme = one["components"]["securitySchemes"]["other"]["x-amazon-apigateway-authorizer"]
    assert scheme["jwtConfiguration"] == {"issuer": "https://other.test", "audience": ["models"]}
    for api in (either, several):
        assert "security" not in api["paths"][_INFER]["post"]
        assert "securitySchemes" not in api["components"]


def test_health_is_asked_without_a_token() -> None:
    api = _api({"access": ["jwt"]}, auth={"jwt": [_CORP]})

    assert "security" in api["paths"][_INFER]["post"]
    assert "security" not in api["paths"]["/v2/health/ready"]["get"]


def test_a_rest_api_checks_bodies_and_passes_on_what_stands_in_the_path() -> None:
    api = _api({}, kind="rest", vpc_link="link")

    run = api["paths"]["/v2/models/fraud/versions/{version}/infer"]["post"]
    assert run["x-amazon-apigateway-request-validator"] == "body"
    integration = run["x-amazon-apigateway-integration"]
    assert integration["connectionType"] == "VPC_LINK"
    assert integration["requestParameters"] == {
        "integration.request.path.version": "method.request.path.version"
    }
    assert api["x-amazon-apigateway-binary-media-types"] == ["application/octet-stream"]


def test_a_listener_gets_the_path_as_it_came() -> None:
    api = _api({}, backend=_ARN, vpc_link="link")

    integration = api["paths"][_INFER]["post"]["x-amazon-apigateway-integration"]
    assert integration["uri"] == _ARN


@pytest.mark.parametrize(
    ("backend", "kind", "link"),
    [
        (_ARN, "http", ""),
        (_ARN, "rest", "link"),
        ("gw:8000", "http", ""),
        ("", "http", ""),
        ("http://user@gw", "http", ""),
        ("http://gw?x=1", "http", ""),
        ("http://gw\n", "http", ""),
    ],
)
def test_a_backend_has_to_be_one(backend: str, kind: str, link: str) -> None:
    with pytest.raises(InvalidArgumentError, match="--backend"):
        AwsOptions(backend=backend, kind=kind, vpc_link=link)  # type: ignore[arg-type]  # one of two


@pytest.mark.parametrize(("kind", "longest"), [("http", 30), ("rest", 29)])
def test_a_longer_timeout_is_refused_only_if_it_is_written(kind: str, longest: int) -> None:
    usual = _api({}, kind=kind)["paths"][_INFER]["post"]["x-amazon-apigateway-integration"]

    assert usual["timeoutInMillis"] == longest * 1000
    for timeout_s in (31, None):
        with pytest.raises(NotExpressibleError, match=rf"timeout_s: waits at most {longest} s"):
            _api({"timeout_s": timeout_s}, kind=kind)


def test_bodies_beyond_ten_megabytes_are_refused_if_they_are_written() -> None:
    with pytest.raises(NotExpressibleError, match=r"limits\.max_body_bytes: accepts requests"):
        _api({"limits": {"max_body_bytes": 20_000_000}})
    with pytest.raises(NotExpressibleError, match=r"gateway\.max_body_bytes: accepts requests"):
        _api({}, gateway={"max_body_bytes": 20_000_000})


def test_the_stage_throttles_runs_and_not_questions() -> None:
    said = {"limits": {"requests_per_s": 2.5, "burst": 7}}
    routes = _stage(said, "http")["Resources"]["Stage"]["Properties"]["RouteSettings"]
    methods = _stage(said, "rest")["Resources"]["Stage"]["Properties"]["MethodSettings"]

    assert routes[f"POST {_INFER}"] == {"ThrottlingRateLimit": 2.5, "ThrottlingBurstLimit": 7}
    assert all(key.startswith("POST ") for key in routes)
    assert methods[0]["ResourcePath"] == "/~1v2~1models~1fraud~1infer"


def test_tiers_are_plans_of_a_rest_api() -> None:
    tiers = [{"name": "gold.1", "requests_per_s": 5, "requests_per_day": 90}, {"name": "idle"}]
    resources = _stage({"access": ["key"]}, "rest", tiers=tiers)["Resources"]

    assert sorted(resources) == ["Stage", "Tier0Gold1"]
    plan = resources["Tier0Gold1"]["Properties"]
    assert plan["Throttle"] == {"RateLimit": 5.0, "BurstLimit": 5}
    assert plan["Quota"] == {"Limit": 90, "Period": "DAY"}
