"""Export of a spec as an API of Amazon API Gateway: OpenAPI 3.0.1, stage and usage plans.

Throttling and usage plans, which OpenAPI cannot express, are in a CloudFormation template that
takes the imported API's id as its parameter.
https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-swagger-extensions.html
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from headrace import __version__
from headrace.core import InvalidArgumentError
from headrace.deploy.export import Body, Export, ExportDocument, finish
from headrace.deploy.facts import Endpoint, ExportFacts
from headrace.deploy.features import ExportNote, ExportTarget, Loss

_DATATYPES: Final = (
    *("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"),
    *("FP16", "FP32", "FP64", "BF16", "BYTES"),
)
_JSON: Final = "application/json"
_BINARY: Final = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of the API."""

    method: str
    path: str
    summary: str
    endpoint: Endpoint | None = None
    schema: str = ""
    """Schema of its body; empty for none."""

    parameters: tuple[str, ...] = ()
    """Names of path parameters."""
    binary: bool = False

    @property
    def validates(self) -> bool:
        """Whether the body is validated."""
        return bool(self.schema)

    @property
    def key(self) -> str:
        """Return the route key of an HTTP API."""
        return f"{self.method.upper()} {self.path}"

    def body(self) -> dict[str, Any]:
        """Return the operation object of OpenAPI."""
        body: dict[str, Any] = {"summary": self.summary}
        if self.parameters:
            body["parameters"] = [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
                for name in self.parameters
            ]
        if self.schema:
            content = {_JSON: {"schema": {"$ref": f"#/components/schemas/{self.schema}"}}}
            if self.binary:
                content[_BINARY] = {"schema": {"type": "string", "format": "binary"}}
            body["requestBody"] = {"required": True, "content": content}
        body["responses"] = {"default": {"description": "as Headrace responds"}}
        return body


def operations(facts: ExportFacts) -> Iterator[Operation]:
    """Yield all operations, those of the server first."""
    for path, summary in (
        ("/v2", "the server's name, version and protocol extensions"),
        ("/v2/health/live", "whether the server lives"),
        ("/v2/health/ready", "whether it can answer"),
    ):
        yield Operation(method="get", path=path, summary=summary)
    for endpoint in facts.endpoints:
        yield from _of(endpoint)


def _of(endpoint: Endpoint) -> Iterator[Operation]:
    base = f"/v2/models/{endpoint.name}"
    for path, names in ((base, ()), (f"{base}/versions/{{version}}", ("version",))):
        yield Operation(
            method="post",
            path=f"{path}/infer",
            summary=f"one run of {endpoint.name}",
            endpoint=endpoint,
            schema="InferRequest",
            parameters=names,
            binary=True,
        )
        for suffix, summary in (
            ("", "inputs and outputs"),
            ("/ready", "whether it can answer"),
            ("/config", "its configuration in Triton's form"),
            ("/stats", "its counters in Triton's form"),
        ):
            yield Operation(
                method="get",
                path=f"{path}{suffix}",
                summary=f"{endpoint.name}: {summary}",
                endpoint=endpoint,
                parameters=names,
            )
    v1 = f"/v1/models/{endpoint.name}"
    yield Operation(
        method="post",
        path=f"{v1}:predict",
        summary=f"one run of {endpoint.name}, by KServe's V1",
        endpoint=endpoint,
        schema="PredictRequest",
    )
    summary = f"{endpoint.name}: whether it can answer, by KServe's V1"
    yield Operation(method="get", path=v1, summary=summary, endpoint=endpoint)


def schemas() -> dict[str, Any]:
    """Return the schemas of bodies. Data is not constrained: replicas report errors better."""
    tensor: dict[str, Any] = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
            "datatype": {"type": "string", "enum": list(_DATATYPES)},
            "parameters": {"type": "object"},
            "data": {"type": "array", "items": {}},
        },
    }
    request: dict[str, Any] = {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": {"$ref": "#/components/schemas/Tensor"}},
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string"}, "parameters": {"type": "object"}},
                },
            },
        },
    }
    predict: dict[str, Any] = {"type": "object"}
    return {"Tensor": tensor, "InferRequest": request, "PredictRequest": predict}


_WORD: Final = re.compile(r"[A-Za-z0-9]+")
_REF: Final[Body] = {"Ref": "ApiId"}


def stage_template(facts: ExportFacts, kind: Literal["http", "rest"]) -> Body:
    """Return the CloudFormation template of the stage."""
    parameters: Body = {"ApiId": {"Type": "String", "Description": "Of the imported API."}}
    if kind == "http":
        routes = {
            operation.key: {"ThrottlingRateLimit": rate, "ThrottlingBurstLimit": burst}
            for operation, rate, burst in throttled(facts)
        }
        properties: Body = {"ApiId": _REF, "StageName": "$default", "AutoDeploy": True}
        if routes:
            properties["RouteSettings"] = routes
        resources = {"Stage": {"Type": "AWS::ApiGatewayV2::Stage", "Properties": properties}}
    else:
        parameters["DeploymentId"] = {"Type": "String", "Description": "Of that API."}
        methods = [
            {
                "ResourcePath": "/" + operation.path.replace("/", "~1"),
                "HttpMethod": operation.method.upper(),
                "ThrottlingRateLimit": rate,
                "ThrottlingBurstLimit": burst,
            }
            for operation, rate, burst in throttled(facts)
        ]
        properties = {
            "RestApiId": _REF,
            "DeploymentId": {"Ref": "DeploymentId"},
            "StageName": "prod",
        }
        if methods:
            properties["MethodSettings"] = methods
        resources = {
            "Stage": {"Type": "AWS::ApiGateway::Stage", "Properties": properties},
            **dict(_plans(facts)),
        }
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": f"Throttling of Headrace's API; written by headrace {__version__}",
        "Parameters": parameters,
        "Resources": resources,
    }


def throttled(facts: ExportFacts) -> Iterator[tuple[Operation, float, int]]:
    """Yield the operations with a rate limit: rate and burst."""
    for operation in operations(facts):
        limits = None if operation.endpoint is None else operation.endpoint.spec.limits.total
        # Only inference requests are limited, not metadata requests.
        if limits is not None and limits.requests_per_s is not None and operation.method == "post":
            yield operation, limits.requests_per_s, limits.most_at_once


def _plans(facts: ExportFacts) -> Iterator[tuple[str, Body]]:
    for i, tier in enumerate(facts.spec.tiers):
        limits_body: Body = {}
        limits = tier.limits
        if limits.requests_per_s is not None:
            limits_body["Throttle"] = {
                "RateLimit": limits.requests_per_s,
                "BurstLimit": limits.most_at_once,
            }
        if limits.requests_per_day is not None:
            limits_body["Quota"] = {"Limit": limits.requests_per_day, "Period": "DAY"}
        if limits_body:
            stages = [{"ApiId": _REF, "Stage": {"Ref": "Stage"}}]
            name = "".join(word.capitalize() for word in _WORD.findall(tier.name))
            properties: Body = {"UsagePlanName": tier.name, "ApiStages": stages, **limits_body}
            body: Body = {"Type": "AWS::ApiGateway::UsagePlan", "Properties": properties}
            yield f"Tier{i}{name}", body


Kind = Literal["http", "rest"]
_LONGEST_S: Final = {"http": 30.0, "rest": 29.0}
_SHORTEST_S: Final = 0.05
_MAX_BYTES: Final = 10 << 20
_URL: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_LISTENER: Final = re.compile(r"arn:aws[a-z-]*:(elasticloadbalancing|servicediscovery):[^\s]+")
_VALIDATOR: Final = "body"
_DESCRIPTION: Final = f"Models behind Headrace; written by `headrace export` {__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsOptions:
    """Options of the target."""

    backend: str
    """URL of Headrace's gateway; for an HTTP API with a `vpc_link`, the ARN of a listener."""

    kind: Kind = "http"

    vpc_link: str = ""
    title: str = "Headrace"

    def __post_init__(self) -> None:
        is_listener = _LISTENER.fullmatch(self.backend) is not None
        if is_listener and not (self.kind == "http" and self.vpc_link):
            msg = f"--backend {self.backend}: a listener needs an HTTP API with --vpc-link"
            raise InvalidArgumentError(msg)
        if not is_listener and not _URL.fullmatch(self.backend):
            msg = f"--backend {self.backend!r} must be http://HOST[:PORT], https://… or an ARN"
            raise InvalidArgumentError(msg)


def aws_apigateway(facts: ExportFacts, options: AwsOptions) -> Export:
    """Export an OpenAPI document to import, and a template of its stage.

    Raises:
        NotExpressibleError: API Gateway cannot express the spec.
    """
    paths: Body = {}
    for operation in operations(facts):
        path = paths.setdefault(operation.path, {})
        path[operation.method] = _operation(facts, operation, options)
    body: Body = {
        "openapi": "3.0.1",
        "info": {"title": options.title, "description": _DESCRIPTION, "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas()},
    }
    schemes = _schemes(facts, options)
    if schemes:
        body["components"]["securitySchemes"] = schemes
    if options.kind == "rest":
        body["x-amazon-apigateway-request-validators"] = {
            _VALIDATOR: {"validateRequestBody": True, "validateRequestParameters": False}
        }
        # Without this, binary tensors would be treated as text.
        body["x-amazon-apigateway-binary-media-types"] = ["application/octet-stream"]
    documents = [
        ExportDocument(name="openapi", body=body),
        ExportDocument(name="stage", body=stage_template(facts, options.kind)),
    ]
    return finish(
        ExportTarget.AWS_APIGATEWAY,
        facts,
        documents,
        losses=_losses(facts, _LONGEST_S[options.kind]),
        notes=_notes(facts, options),
    )


def _operation(facts: ExportFacts, operation: Operation, options: AwsOptions) -> Body:
    body: Body = dict(operation.body())
    if options.kind == "rest" and operation.validates:
        body["x-amazon-apigateway-request-validator"] = _VALIDATOR
    scheme = _token_only(facts, operation.endpoint)
    if options.kind == "http" and scheme:
        body["security"] = [{scheme: []}]
    method = operation.method.upper()
    integration: Body = {"type": "http_proxy", "httpMethod": method}
    if options.backend.startswith("arn:"):
        integration["uri"] = options.backend  # the path is unchanged
    else:
        integration["uri"] = f"{options.backend.rstrip('/')}{operation.path}"
    integration["timeoutInMillis"] = round(_timeout_s(operation.endpoint, options.kind) * 1000)
    if options.vpc_link:
        integration |= {"connectionType": "VPC_LINK", "connectionId": options.vpc_link}
    if options.kind == "http":
        integration["payloadFormatVersion"] = "1.0"
    else:
        integration["passthroughBehavior"] = "when_no_match"
        if operation.parameters:
            integration["requestParameters"] = {
                f"integration.request.path.{name}": f"method.request.path.{name}"
                for name in operation.parameters
            }
    body["x-amazon-apigateway-integration"] = integration
    return body


def _schemes(facts: ExportFacts, options: AwsOptions) -> Body:
    if options.kind == "rest":
        return {}
    used = {scheme for e in facts.endpoints if (scheme := _token_only(facts, e))}
    return {
        jwt.name: {
            "type": "oauth2",
            "flows": {},
            "x-amazon-apigateway-authorizer": {
                "type": "jwt",
                "identitySource": "$request.header.Authorization",
                "jwtConfiguration": {"issuer": jwt.issuer, "audience": list(jwt.audiences)},
            },
        }
        for jwt in facts.spec.auth.jwt
        if jwt.name in used
    }


def _token_only(facts: ExportFacts, endpoint: Endpoint | None) -> str:
    """Return the provider whose tokens are the only way to authenticate; empty if there is none.

    A route has one authorizer. With other methods, the gateway behind it authenticates.
    """
    access = None if endpoint is None else endpoint.spec.access
    if access is None or access == "public":
        return ""
    providers = [jwt.name for jwt in facts.spec.auth.jwt]
    names: list[str] = []
    for method in access:
        kind, _, name = method.partition(":")
        if kind != "jwt":
            return ""
        names += [name] if name else providers
    return names[0] if len(set(names)) == 1 and names[0] in providers else ""


def _timeout_s(endpoint: Endpoint | None, kind: Kind) -> float:
    longest = _LONGEST_S[kind]
    requested_s = longest if endpoint is None else endpoint.spec.timeout_s
    return max(min(math.inf if requested_s is None else requested_s, longest), _SHORTEST_S)


def _losses(facts: ExportFacts, longest: float) -> Iterator[Loss]:
    for endpoint in facts.endpoints:
        timeout_s, size = endpoint.spec.timeout_s, endpoint.spec.limits.max_body_bytes
        is_set = "timeout_s" in endpoint.spec.model_fields_set
        if is_set and (timeout_s is None or timeout_s > longest):
            yield Loss(
                f"{endpoint.location}.timeout_s",
                f"waits at most {longest:g} s for a response",
                f"set {longest:g} s or less, or use a load balancer instead",
            )
        if size is not None and size > _MAX_BYTES:
            yield Loss(f"{endpoint.location}.limits.max_body_bytes", *_TOO_LARGE)
    gateway = facts.spec.gateway
    if "max_body_bytes" in gateway.model_fields_set and gateway.max_body_bytes > _MAX_BYTES:
        yield Loss("gateway.max_body_bytes", *_TOO_LARGE)


_TOO_LARGE: Final = (
    "accepts requests of at most 10 MB",
    "set 10 MB or less, or use a load balancer instead",
)


def _notes(facts: ExportFacts, options: AwsOptions) -> Iterator[ExportNote]:
    yield ExportNote("gRPC: not supported by API Gateway")
    longest = _LONGEST_S[options.kind]
    for endpoint in facts.endpoints:
        timeout_s = endpoint.spec.timeout_s
        if "timeout_s" not in endpoint.spec.model_fields_set and (timeout_s or 0) > longest:
            yield ExportNote(
                f"is not set; {longest:g} s, not {timeout_s:g} s", f"{endpoint.location}.timeout_s"
            )
    if facts.spec.auth.jwt and options.kind == "rest":
        yield ExportNote(
            "a REST API does not verify tokens; the gateway behind it does", "auth.jwt"
        )
