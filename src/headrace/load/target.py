"""Load target: URL, prebuilt requests, and the queries that precede a run."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

import msgspec
import orjson

from headrace.client.answers import ModelMetadata, signature_from
from headrace.client.conversation import ProtocolExchange, SendMessage
from headrace.client.credentials import ConnectionOptions, Trust, connection_options, parse_target
from headrace.client.credentials import ServerAddress as Server
from headrace.client.http_transport import BlockingHttpTransport, HttpMessage, HttpReply
from headrace.client.http_wire import HttpWire, decode_infer
from headrace.core import (
    Array,
    Datatype,
    InferRequest,
    InvalidArgumentError,
    ModelSignature,
    NotFoundError,
    Tensors,
    UnsupportedError,
    datatype_of,
)
from headrace.core.error_kind import UNDECODABLE

_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]{0,16384}")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection", "expect"})


def json_message(model: str, version: str, inputs: Tensors) -> tuple[dict[str, str], bytes]:
    """Return the headers and body of an infer request in JSON.

    Raises:
        InvalidArgumentError: JSON cannot carry an input.
    """
    del model, version  # they are only in the path
    tensors = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": str(datatype_of(array.dtype)),
            "data": _json_data(name, array),
        }
        for name, array in inputs.items()
    ]
    body = orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return {"content-type": "application/json"}, body


def binary_message(model: str, version: str, inputs: Tensors) -> tuple[dict[str, str], bytes]:
    """Return headers and body with tensors as bytes after a JSON head, in both directions."""
    request = InferRequest(
        model_name=model, model_version=version, inputs=inputs, binary_data_output=True
    )
    message = HttpWire().infer(request).message
    return dict(message.headers), message.content


def http_request(path: str, authority: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """Return a whole request; a header `host` among `headers` wins over `authority`."""
    all_headers = {"host": authority, "user-agent": "headrace-load", "accept": "*/*", **headers}
    all_headers["content-length"] = str(len(body))
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in all_headers.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def parse_headers(texts: Sequence[str]) -> dict[str, str]:
    """Parse headers written as `NAME: VALUE`, by lower-case name.

    Raises:
        InvalidArgumentError: A header is malformed, or is a framing header.
    """
    headers = {}
    for text in texts:
        name, separator, value = text.partition(":")
        name, value = name.strip(" \t").lower(), value.strip(" \t")
        if not separator or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            msg = "a header must be NAME: VALUE, without line breaks"
            raise InvalidArgumentError(msg)
        if name in _FRAMING:
            msg = f"the header '{name}' cannot be set: it is derived from the body"
            raise InvalidArgumentError(msg)
        headers[name] = value
    return headers


def _json_data(name: str, array: Array) -> Any:  # noqa: ANN401  # what orjson takes
    datatype = datatype_of(array.dtype)
    if datatype is Datatype.FP16:
        msg = f"input '{name}' is FP16, which JSON does not carry; use --binary"
        raise InvalidArgumentError(msg)
    flat = array.reshape(-1)
    if datatype is not Datatype.BYTES:
        return flat
    try:
        return [element.decode() for element in flat]
    except UnicodeDecodeError:
        msg = (
            f"input '{name}' holds bytes that are not UTF-8, which JSON cannot carry; use --binary"
        )
        raise InvalidArgumentError(msg) from None


_MODEL_PATH: Final = re.compile(
    r"(?P<before>.*?)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/infer)?/?"
)
_SHOWN: Final = 8
_OK: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTarget:
    """Model on a server, with the requests to send."""

    url: str
    """URL from the user, for display."""
    server: Server
    """Address of the server."""
    model: str
    """Name of the model; empty until it is known."""
    version: str = ""
    """Version number; empty lets the server choose."""
    connection_options: ConnectionOptions = field(default_factory=ConnectionOptions)
    requests: tuple[bytes, ...] = field(default=(), repr=False)
    """Prebuilt HTTP requests, sent in turn."""

    @property
    def path(self) -> str:
        """Path of infer requests."""
        prefix = urlsplit(self.server.base_url).path
        return f"{prefix}{_model_path(self.model, self.version)}/infer"

    def with_messages(self, messages: list[tuple[dict[str, str], bytes]]) -> "LoadTarget":
        """Return the target with requests of these headers and bodies."""
        secret = self.connection_options.credentials.headers
        requests = tuple(
            http_request(
                self.path,
                self.server.authority,
                headers | dict(self.connection_options.headers) | dict(secret),
                body,
            )
            for headers, body in messages
        )
        return replace(self, requests=requests)


def parse_url(url: str, *, model: str = "", version: str = "") -> tuple[Server, str, str]:
    """Return the server, model and version of a URL, completed by the other arguments.

    Raises:
        InvalidArgumentError: It is not a URL of a V2 server, or it names another model.
    """
    base, match = url, None
    if not url.startswith("unix:"):
        full = url if "://" in url else f"http://{url}"
        try:
            parts = urlsplit(full)
        except ValueError as error:
            msg = f"'{url}' is not a URL: {error}"
            raise InvalidArgumentError(msg) from None
        if parts.query or parts.fragment:
            msg = f"'{url}' has a query or a fragment, which a V2 server does not accept"
            raise InvalidArgumentError(msg)
        match = _MODEL_PATH.fullmatch(parts.path)
        if match is not None:
            base = parts._replace(path=match["before"]).geturl()
    server = parse_target(base)
    if server.protocol != "http":
        msg = f"'{url}': load is sent over HTTP; use http://, https:// or unix:/PATH"
        raise InvalidArgumentError(msg)
    named = unquote(match["model"]) if match else ""
    numbered = unquote(match["version"] or "") if match else ""
    if model and named and model != named:
        msg = f"the URL names the model '{named}', but --model names '{model}'"
        raise InvalidArgumentError(msg)
    return server, _checked(model or named), _checked(version or numbered)


def _checked(name: str) -> str:
    if any(
        character in "/?#%\\" or not character.isprintable() or character == " "
        for character in name
    ):
        msg = f"{name!r} cannot be a model's name or version in a URL"
        raise InvalidArgumentError(msg)
    return name


def open_target(
    url: str,
    *,
    model: str = "",
    version: str = "",
    headers: Mapping[str, str] | None = None,
    api_key: str | None = None,
    token: str | None = None,
    trust: Trust | None = None,
    allow_insecure: bool = False,
) -> LoadTarget:
    """Return the target at `url`, without requests and without contacting it.

    Args:
        url: `http[s]://HOST:PORT`, that with `/v2/models/NAME[/versions/V][/infer]`, or
            `unix:/PATH`.
        model: Used if the URL names none; empty for the server's only model.
        headers: Sent with every request, by lower-case name.

    Raises:
        InvalidArgumentError: The URL is invalid, or credentials would travel unencrypted.
    """
    server, name, number = parse_url(url, model=model, version=version)
    options = connection_options(
        server,
        headers=dict(headers or {}),
        api_key=api_key,
        token=token,
        trust=trust or Trust(),
        allow_insecure=allow_insecure,
    )
    return LoadTarget(
        url=url, server=server, model=name, version=number, connection_options=options
    )


class TargetProbe:
    """Client that reads a target's model name and signature. Close it, or use it in a `with`."""

    def __init__(self, target: LoadTarget, *, timeout_s: float = 10.0) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._transport = BlockingHttpTransport(target.server, target.connection_options)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def only_model(self) -> str:
        """Return the name of the server's only model.

        Raises:
            InvalidArgumentError: It has no model, several, or does not list them.
        """
        listing = HttpMessage(method="GET", path="/v2/models", headers={}, content=b"")
        index = HttpMessage(
            method="POST",
            path="/v2/repository/index",
            headers={"content-type": "application/json"},
            content=b'{"ready": true}',
        )
        names = _names(self._send(listing))
        if names is None:  # only Headrace and KServe have the first
            names = _names(self._send(index))
        if names is None:
            msg = "the server lists no models; name one with --model"
            raise InvalidArgumentError(msg)
        if len(names) != 1:
            listed = ", ".join(f"'{name}'" for name in names[:_SHOWN])
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            has = f"the server has {listed}{more}" if names else "the server has no model ready"
            msg = f"{has}; name one with --model"
            raise InvalidArgumentError(msg)
        return _checked(names[0])

    def signature(self) -> ModelSignature:
        """Return the model's signature."""
        model, version = self._target.model, self._target.version
        metadata: ModelMetadata = self._read(HttpWire().metadata(model, version))
        try:
            config = self._read(HttpWire().config(model, version))
        except (NotFoundError, UnsupportedError):
            config = None  # an extension that other V2 servers lack
        try:
            signature = signature_from(metadata, config)
        except ValueError as error:
            msg = f"the model's metadata names a datatype that the protocol does not have: {error}"
            raise InvalidArgumentError(msg) from None
        if not signature.inputs:
            msg = f"by its metadata, '{metadata.name}' takes no inputs"
            raise InvalidArgumentError(msg)
        return signature

    def check_requests(self, messages: list[tuple[dict[str, str], bytes]]) -> None:
        """Send some of the requests, and raise the first error.

        Raises:
            HeadraceError: The server rejects one of them.
        """
        path = f"{_model_path(self._target.model, self._target.version)}/infer"
        for headers, body in messages[:_SHOWN]:
            message = HttpMessage(method="POST", path=path, headers=headers, content=body)
            decode_infer(self._send(message))

    def _read(self, exchange: ProtocolExchange[Any]) -> Any:  # noqa: ANN401  # what the exchange reads
        return exchange.read(self._send(exchange.message))

    def _send(self, message: HttpMessage) -> HttpReply:
        return self._transport.send(SendMessage(message, self._timeout_s))


class _Entry(msgspec.Struct):
    name: str
    state: str = ""


class _Listing(msgspec.Struct):
    models: list[str]


def _names(reply: HttpReply) -> list[str] | None:
    """Return the models in a list or a repository index; None if the reply is neither."""
    if reply.status != _OK:
        return None
    try:
        entries = msgspec.json.decode(reply.body, type=_Listing | list[_Entry])
    except UNDECODABLE:
        return None
    if isinstance(entries, _Listing):
        return list(dict.fromkeys(entries.models))
    ready = [entry.name for entry in entries if entry.state in {"", "READY"}]
    return list(dict.fromkeys(ready))


def _model_path(model: str, version: str) -> str:
    return f"/v2/models/{model}/versions/{version}" if version else f"/v2/models/{model}"
