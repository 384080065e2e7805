"""Form that sends a request to an endpoint, with the same call as curl and Python.

The request goes through the gateway like any caller's, with the key from the form and no
credentials of the console: the endpoint applies the same access rules.
"""

import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from shlex import quote
from typing import Any, Final

import httpx

from headrace.client.credentials import KEY_HEADER
from headrace.console.view import GatewayLocation, PageRequest, PageView, RefusedError
from headrace.control.api.endpoints import EndpointView
from headrace.control.api.models import KnownVersion
from headrace.core import Array, ModelSignature
from headrace.core.examples import example_inputs
from headrace.core.spec.upstream import UpstreamProtocol

_TIMEOUT_S: Final = 30.0
_MAX_TEXT: Final = 20_000
_MAX_NUMBERS: Final = 1_000
_EMPTY: Final = '{"inputs": []}'
_CLIENT_ERROR: Final = 400
_NOT_FOUND: Final = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class FormField:
    """One input of the form."""

    name: str
    """Name of the input."""
    datatype: str
    """Datatype of the Open Inference Protocol."""
    expected: str
    """Expected shape, as text."""
    shape: str
    """Shape as entered."""
    data: str
    """Data as entered, JSON."""
    problem: str = ""
    """Why the entered values are invalid; empty if they are valid."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TryItResponse:
    """Response to a request of the form."""

    status: int
    """HTTP status; 0 without a response."""
    took_s: float
    """Duration, in seconds."""
    version: str
    """Model version that answered."""
    text: str
    """Body of the response."""
    is_error: bool
    """Whether the request failed."""
    hint: str = ""
    """Remedy for an error; empty for none."""


async def try_it(request: PageRequest, form: Mapping[str, str] | None = None) -> PageView:
    """Return the form, with the response if `form` was sent.

    Raises:
        RefusedError: The endpoint serves a language model (404), which has a playground.
    """
    name, gateway = request.names["name"], request.gateway
    endpoint = await request.visitor.get(f"/api/v1/endpoints/{name}", EndpointView)
    version = await main_version(request, endpoint)
    if is_language_model(endpoint, version):
        detail = f"'{name}' serves a language model: chat with it at /endpoints/{name}/chat"
        raise RefusedError.of(_NOT_FOUND, detail)
    fields = [] if version is None else fields_of(version.signature, form or {})
    path = f"/v2/models/{name}/infer"
    body, problem = _body(fields, form)
    access = access_of(endpoint)
    answer = None
    if form is not None and not problem:
        answer = await _send(gateway, path, body, key=form.get("key", "").strip())
    return PageView(
        template="try.html",
        title=f"Try {name}",
        section="fleet",
        values={
            "endpoint": endpoint,
            "fields": fields,
            "outputs": () if version is None else version.signature.outputs,
            "body": body,
            "problem": problem,
            "answer": answer,
            "access": access,
            "curl": curl_of(gateway, path, body, needs_key=bool(access)),
            "python": python_of(gateway, name, fields, needs_key=bool(access)),
        },
    )


async def main_version(request: PageRequest, endpoint: EndpointView) -> KnownVersion | None:
    """Return the version with most requests; None if its signature is unknown."""
    main = max(endpoint.status.revisions, key=lambda revision: revision.weight, default=None)
    name, _, version = ("" if main is None else main.model).rpartition(":")
    if not name:
        return None
    return await request.visitor.find(f"/api/v1/models/{name}/versions/{version}", KnownVersion)


def is_language_model(endpoint: EndpointView, version: KnownVersion | None) -> bool:
    """Whether the endpoint answers chats of OpenAI's API, and no tensors."""
    spec = endpoint.spec or {}
    upstreams = [part.get("upstream") or {} for part in (spec, *(spec.get("versions") or ()))]
    is_openai = any(upstream.get("protocol") == UpstreamProtocol.OPENAI for upstream in upstreams)
    return is_openai or (version is not None and not version.signature.has_tensors)


def fields_of(signature: ModelSignature, form: Mapping[str, str]) -> list[FormField]:
    """Return the form's fields, with the sent values, or with a generated row."""
    fields = []
    for spec, array in zip(signature.inputs, example_inputs(signature).values(), strict=True):
        values = _numbers(array, is_exact=spec.name in signature.example)
        shape = form.get(f"shape.{spec.name}", ", ".join(map(str, array.shape)))[:_MAX_TEXT]
        data = form.get(f"data.{spec.name}", json.dumps(values))[:_MAX_TEXT]
        problem = ""
        try:
            _tensor(spec.name, str(spec.datatype), shape, data)
        except ValueError as error:
            problem = str(error)
        expected = ", ".join("any" if size < 0 else str(size) for size in spec.shape)
        fields.append(
            FormField(
                name=spec.name,
                datatype=str(spec.datatype),
                expected=expected,
                shape=shape,
                data=data,
                problem=problem,
            )
        )
    return fields


def _numbers(array: Array, *, is_exact: bool) -> list[Any]:
    """Return values short enough to read, limited to the size of a form."""
    flat = array.reshape(-1)[:_MAX_NUMBERS]
    if array.dtype.kind == "f" and not is_exact:
        return [round(float(value), 2) for value in flat]
    return [value.decode() if isinstance(value, bytes) else value for value in flat.tolist()]


def _tensor(name: str, datatype: str, shape: str, data: str) -> dict[str, object]:
    """Return an input in the protocol's form.

    Raises:
        ValueError: The text is not valid; the message is displayed.
    """
    try:
        sizes = [int(part) for part in shape.replace("[", "").replace("]", "").split(",")]
    except ValueError:
        message = "the shape must be integers separated by commas, as in 1, 4"
        raise ValueError(message) from None
    try:
        values = json.loads(data)
    except ValueError as error:
        message = f"the data must be a JSON list, as in [0.5, 1]: {error}"
        raise ValueError(message) from None
    if not isinstance(values, list):
        message = "the data must be a JSON list, as in [0.5, 1]"
        raise ValueError(message)  # noqa: TRY004  # a mistake in a form, not in a call
    return {"name": name, "datatype": datatype, "shape": sizes, "data": values}


def _body(fields: list[FormField], form: Mapping[str, str] | None) -> tuple[str, str]:
    """Return the request's body, and the error in the sent values."""
    if not fields:
        text = (form or {}).get("body", _EMPTY)[:_MAX_TEXT]
        try:
            json.loads(text)
        except ValueError as error:
            return text, f"the request is not JSON: {error}"
        return text, ""
    wrong = [f"{field.name}: {field.problem}" for field in fields if field.problem]
    if wrong:
        return _EMPTY, "; ".join(wrong)
    tensors = [_tensor(field.name, field.datatype, field.shape, field.data) for field in fields]
    return json.dumps({"inputs": tensors}), ""


async def _send(gateway: GatewayLocation, path: str, body: str, *, key: str) -> TryItResponse:
    """Send the request to the endpoint."""
    started = time.perf_counter()
    try:
        async with gateway_client(gateway, httpx.Timeout(_TIMEOUT_S)) as client:
            response = await client.post(path, content=body, headers=headers_with(key))
    except (httpx.HTTPError, UnicodeEncodeError) as error:
        text = str(error) or type(error).__name__
        return TryItResponse(status=0, took_s=0.0, version="", text=text, is_error=True)
    took_s = time.perf_counter() - started
    text, version = _display(response)
    return TryItResponse(
        status=response.status_code,
        took_s=took_s,
        version=version,
        text=text,
        is_error=response.status_code >= _CLIENT_ERROR,
        hint=_HINTS.get(response.status_code, ""),
    )


_HINTS: Final = {
    401: "This endpoint requires authentication: enter an API key above.",
    403: "The key is valid, but its scopes do not include this endpoint.",
    429: "The endpoint is overloaded, or the caller exceeded its rate limit: retry later.",
    503: "No replica is ready.",
    504: "The request was not answered before its deadline.",
}


def headers_with(key: str) -> dict[str, str]:
    """Return the headers of a JSON request with an API key; empty for none."""
    headers = {"content-type": "application/json", "user-agent": "headrace-console"}
    return headers | {KEY_HEADER: key} if key else headers


def gateway_client(gateway: GatewayLocation, timeout: httpx.Timeout) -> httpx.AsyncClient:
    """Return a client that trusts the gateway's own certificate, independent of its names."""
    trust: ssl.SSLContext | bool = False  # plain text: nothing to verify
    if gateway.ca:
        trust = ssl.create_default_context(cafile=gateway.ca)
        trust.check_hostname = False
        trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return httpx.AsyncClient(base_url=gateway.url, verify=trust, timeout=timeout, trust_env=False)


def _display(response: httpx.Response) -> tuple[str, str]:
    """Return the response as readable text, and the version that sent it."""
    try:
        document = response.json()
    except ValueError:
        return response.text[:_MAX_TEXT], ""
    version = document.get("model_version", "") if isinstance(document, dict) else ""
    return json.dumps(document, indent=2)[:_MAX_TEXT], str(version)


def access_of(endpoint: EndpointView) -> tuple[str, ...]:
    """Return the endpoint's authentication methods; empty without authentication."""
    ways = (endpoint.spec or {}).get("access") or ()
    if ways == "public":
        return ()
    methods = ways if isinstance(ways, list | tuple) else (ways,)
    return tuple(str(way) for way in methods)


def curl_of(gateway: GatewayLocation, path: str, body: str, *, needs_key: bool) -> str:
    """Return the same request for a shell."""
    lines = [f"curl -s {gateway.url}{path}"]
    if gateway.ca:
        lines.append(f"  --cacert {quote(gateway.ca)}")
    if needs_key:
        lines.append('  -H "x-api-key: $KEY"')
    lines.append("  -H 'content-type: application/json'")
    lines.append(f"  -d {quote(body)}")
    return " \\\n".join(lines)


def python_of(
    gateway: GatewayLocation, name: str, fields: list[FormField], *, needs_key: bool
) -> str:
    """Return the same request with the Python client."""
    more = f", ca_file={gateway.ca!r}" if gateway.ca else ""
    more += ', api_key=os.environ["KEY"]' if needs_key else ""
    inputs = [
        f'            "{field.name}": np.array({field.data}, {_dtype(field.datatype)})'
        f".reshape({field.shape}),"
        for field in fields
    ]
    lines = [
        *(["import os", ""] if needs_key else []),
        "import numpy as np",
        "",
        "from headrace.client import Client",
        "",
        f'with Client("{gateway.url}"{more}) as client:',
        "    response = client.infer(",
        f'        "{name}",',
        "        {",
        *inputs,
        "        },",
        "    )",
        "    print(response.outputs)",
    ]
    return "\n".join(lines)


def _dtype(datatype: str) -> str:
    plain = {"BYTES": "object", "BOOL": "bool"}
    return plain.get(datatype, "np." + datatype.lower().replace("fp", "float"))
