"""A spec as an API of Amazon API Gateway before Headrace's own gateway: OpenAPI with integrations.

What OpenAPI cannot carry, throttling and usage plans, is a CloudFormation template beside it.
https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-swagger-extensions.html
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from headrace import __version__
from headrace.core import InvalidArgumentError
from headrace.deploy.aws_stage import stage_template
from headrace.deploy.export import Body, Document, Export, finish
from headrace.deploy.facts import Endpoint, Facts
from headrace.deploy.features import Target
from headrace.deploy.losses import Loss
from headrace.deploy.notes import Note
from headrace.deploy.openapi import Operation, operations, schemas

Kind = Literal["http", "rest"]
_LONGEST_S: Final = {"http": 30.0, "rest": 29.0}
_SHORTEST_S: Final = 0.05
_MOST_BYTES: Final = 10 << 20
_URL: Final = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")
_LISTENER: Final = re.compile(r"arn:aws[a-z-]*:(elasticloadbalancing|servicediscovery):[^\s]+")
_VALIDATOR: Final = "body"
_DESCRIPTION: Final = f"Models behind Headrace; written by `headrace export` {__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsOptions:
    """`backend`: URL of Headrace's gateway; with an HTTP API and a `vpc_link`, a listener's ARN."""

    backend: str
    kind: Kind = "http"
    vpc_link: str = ""
    title: str = "Headrace"

    def __post_init__(self) -> None:
        is_listener = _LISTENER.fullmatch(self.backend) is not None
        if is_listener and not (self.kind == "http" and self.vpc_link):
            msg = f"--backend {self.backend}: a listener is reached by an HTTP API with --vpc-link"
            raise InvalidArgumentError(msg)
        if not is_listener and not _URL.fullmatch(self.backend):
            msg = (
                f"--backend {self.backend!r} is neither http://HOST[:PORT] nor https://… nor an ARN"
            )
            raise InvalidArgumentError(msg)


def aws_apigateway(facts: Facts, options: AwsOptions) -> Export:
    """An OpenAPI document to import, and a template of its stage.

    Raises:
        NotExpressibleError: The spec says what API Gateway cannot.
    """
    body: Body = {
        "openapi": "3.0.1",
        "info": {"title": options.title, "description": _DESCRIPTION, "version": __version__},
        "paths": _paths(facts, options),
        "components": {"schemas": schemas()},
    }
    schemes = _schemes(facts, options)
    if schemes:
        body["components"]["securitySchemes"] = schemes
    if options.kind == "rest":
        body["x-amazon-apigateway-request-validators"] = {
            _VALIDATOR: {"validateRequestBody": True, "validateRequestParameters": False}
        }
        # Without this, the bytes of binary tensors would be read as text.
        body["x-amazon-apigateway-binary-media-types"] = ["application/octet-stream"]
    documents = [
        Document(name="openapi", body=body),
        Document(name="stage", body=stage_template(facts, options.kind)),
    ]
    return finish(
        Target.AWS_APIGATEWAY,
        facts,
        documents,
        losses=[loss for e in facts.endpoints for loss in _losses(e, options.kind)]
        + list(_body_losses(facts)),
        notes=_notes(facts, options),
    )


def _paths(facts: Facts, options: AwsOptions) -> Body:
    found: Body = {}
    for operation in operations(facts):
        path = found.setdefault(operation.path, {})
        path[operation.method] = _operation(facts, operation, options)
    return found


def _operation(facts: Facts, operation: Operation, options: AwsOptions) -> Body:
    body: Body = dict(operation.body())
    if options.kind == "rest" and operation.validates:
        body["x-amazon-apigateway-request-validator"] = _VALIDATOR
    scheme = _token_only(facts, operation.endpoint)
    if options.kind == "http" and scheme:
        body["security"] = [{scheme: []}]
    body["x-amazon-apigateway-integration"] = _integration(operation, options)
    return body


def _integration(operation: Operation, options: AwsOptions) -> Body:
    method = operation.method.upper()
    found: Body = {"type": "http_proxy", "httpMethod": method}
    if options.backend.startswith("arn:"):
        found["uri"] = options.backend  # the path goes on as it came
    else:
        found["uri"] = f"{options.backend.rstrip('/')}{operation.path}"
    found["timeoutInMillis"] = round(_timeout_s(operation.endpoint, options.kind) * 1000)
    if options.vpc_link:
        found |= {"connectionType": "VPC_LINK", "connectionId": options.vpc_link}
    if options.kind == "http":
        found["payloadFormatVersion"] = "1.0"
    else:
        found["passthroughBehavior"] = "when_no_match"
        if operation.parameters:
            found["requestParameters"] = {
                f"integration.request.path.{name}": f"method.request.path.{name}"
                for name in operation.parameters
            }
    return found


def _schemes(facts: Facts, options: AwsOptions) -> Body:
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


def _token_only(facts: Facts, endpoint: Endpoint | None) -> str:
    """The only provider whose tokens let callers in, and nothing else does; empty if there is none.

    A route has one authorizer. Where something else lets callers in too, the gateway behind asks.
    """
    access = None if endpoint is None else endpoint.spec.access
    if access is None or access == "public":
        return ""
    providers = [jwt.name for jwt in facts.spec.auth.jwt]
    found: list[str] = []
    for method in access:
        kind, _, name = method.partition(":")
        if kind != "jwt":
            return ""
        found += [name] if name else providers
    return found[0] if len(set(found)) == 1 and found[0] in providers else ""


def _timeout_s(endpoint: Endpoint | None, kind: Kind) -> float:
    longest = _LONGEST_S[kind]
    wanted = longest if endpoint is None else endpoint.spec.timeout_s
    return max(min(math.inf if wanted is None else wanted, longest), _SHORTEST_S)


def _losses(endpoint: Endpoint, kind: Kind) -> Iterator[Loss]:
    timeout_s, longest = endpoint.spec.timeout_s, _LONGEST_S[kind]
    if "timeout_s" in endpoint.spec.model_fields_set and (timeout_s is None or timeout_s > longest):
        yield Loss(
            f"{endpoint.place}.timeout_s",
            f"waits {longest:g} s for an answer at most",
            f"take {longest:g} s or less, or put a load balancer there instead",
        )
    size = endpoint.spec.limits.max_body_bytes
    if size is not None and size > _MOST_BYTES:
        yield Loss(f"{endpoint.place}.limits.max_body_bytes", *_TOO_LARGE)


def _body_losses(facts: Facts) -> Iterator[Loss]:
    gateway = facts.spec.gateway
    if "max_body_bytes" in gateway.model_fields_set and gateway.max_body_bytes > _MOST_BYTES:
        yield Loss("gateway.max_body_bytes", *_TOO_LARGE)


_TOO_LARGE: Final = (
    "takes requests of 10 MB at most",
    "allow no more, or put a load balancer there",
)


def _notes(facts: Facts, options: AwsOptions) -> Iterator[Note]:
    yield Note("gRPC: API Gateway carries none")
    longest = _LONGEST_S[options.kind]
    for endpoint in facts.endpoints:
        timeout_s = endpoint.spec.timeout_s
        if "timeout_s" not in endpoint.spec.model_fields_set and (timeout_s or 0) > longest:
            yield Note(
                f"is not set; {longest:g} s, not {timeout_s:g} s", f"{endpoint.place}.timeout_s"
            )
    if facts.spec.auth.jwt and options.kind == "rest":
        yield Note("a REST API checks no tokens; the gateway behind it does", "auth.jwt")
