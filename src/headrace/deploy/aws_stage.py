"""What OpenAPI cannot carry to API Gateway: its stage with throttling, and plans for tiers.

A CloudFormation template with the imported API's id as its parameter.
"""

import math
import re
from collections.abc import Iterator
from typing import Final, Literal

from headrace import __version__
from headrace.core.spec_access import LimitSpec, TierSpec
from headrace.deploy.export import Body
from headrace.deploy.facts import Facts
from headrace.deploy.openapi import Operation, operations

_WORD: Final = re.compile(r"[A-Za-z0-9]+")
_REF: Final[Body] = {"Ref": "ApiId"}


def stage_template(facts: Facts, kind: Literal["http", "rest"]) -> Body:
    """The template."""
    parameters: Body = {"ApiId": {"Type": "String", "Description": "Of the imported API."}}
    if kind == "http":
        resources = {"Stage": _http_stage(facts)}
    else:
        parameters["DeploymentId"] = {"Type": "String", "Description": "Of that API."}
        resources = {"Stage": _rest_stage(facts), **dict(_plans(facts))}
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Throttling of Headrace's API; written by headrace {__version__}",
        "Parameters": parameters,
        "Resources": resources,
    }


def throttled(facts: Facts) -> Iterator[tuple[Operation, float, int]]:
    """The operations with a limit: rate and burst."""
    for operation in operations(facts):
        limits = None if operation.endpoint is None else operation.endpoint.spec.limits.total
        # Questions about a model cost nothing; runs do.
        if limits is not None and limits.requests_per_s is not None and operation.method == "post":
            yield operation, limits.requests_per_s, _burst(limits)


def _http_stage(facts: Facts) -> Body:
    settings = {
        operation.key: {"ThrottlingRateLimit": rate, "ThrottlingBurstLimit": burst}
        for operation, rate, burst in throttled(facts)
    }
    properties: Body = {"ApiId": _REF, "StageName": "$default", "AutoDeploy": True}
    if settings:
        properties["RouteSettings"] = settings
    return {"Type": "AWS::ApiGatewayV2::Stage", "Properties": properties}


def _rest_stage(facts: Facts) -> Body:
    settings = [
        {
            "ResourcePath": "/" + operation.path.replace("/", "~1"),
            "HttpMethod": operation.method.upper(),
            "ThrottlingRateLimit": rate,
            "ThrottlingBurstLimit": burst,
        }
        for operation, rate, burst in throttled(facts)
    ]
    properties: Body = {
        "RestApiId": _REF,
        "DeploymentId": {"Ref": "DeploymentId"},
        "StageName": "prod",
    }
    if settings:
        properties["MethodSettings"] = settings
    return {"Type": "AWS::ApiGateway::Stage", "Properties": properties}


def _plans(facts: Facts) -> Iterator[tuple[str, Body]]:
    for i, tier in enumerate(facts.spec.tiers):
        found = _plan(tier)
        if found:
            stages = [{"ApiId": _REF, "Stage": {"Ref": "Stage"}}]
            name = "".join(word.capitalize() for word in _WORD.findall(tier.name))
            properties: Body = {"UsagePlanName": tier.name, "ApiStages": stages, **found}
            body: Body = {"Type": "AWS::ApiGateway::UsagePlan", "Properties": properties}
            yield f"Tier{i}{name}", body


def _plan(tier: TierSpec) -> Body:
    plan: Body = {}
    limits = tier.limits
    if limits.requests_per_s is not None:
        plan["Throttle"] = {"RateLimit": limits.requests_per_s, "BurstLimit": _burst(limits)}
    if limits.requests_per_day is not None:
        plan["Quota"] = {"Limit": limits.requests_per_day, "Period": "DAY"}
    return plan


def _burst(limits: LimitSpec) -> int:
    return limits.burst or max(math.ceil(limits.requests_per_s or 0.0), 1)
