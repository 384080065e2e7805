"""Online store of [Hopsworks](https://www.hopsworks.ai/): feature vectors of its REST server.

Uses the protocol of its own client, `hopsworks` 5.2, which is not needed. Connections are reused; a
slow or endless response body also ends at the deadline. The server returns vectors of feature
views. If a vector has the view's time column, a time to live counts from it; otherwise a value
counts as of the moment of the read.
"""

import base64
import binascii
import http.client
import os
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from headrace.core import (
    Datatype,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.redact import remember_resolved
from headrace.features.definitions import FeatureView, Value
from headrace.features.online.store import DEFAULT_TIMEOUT_S, Place
from headrace.features.records import Key, Record, RecordLayout, decode_key, key_prefix
from headrace.features.values import microseconds, misfit

if TYPE_CHECKING:
    import socket

MAX_ANSWER_BYTES: Final = 64 << 20
_READ_BYTES: Final = 1 << 16
_MAX_IDLE: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HopsworksResponse:
    """A response of the server."""

    status: int
    body: bytes


@dataclass(slots=True, kw_only=True)
class _PendingRequest:
    """A request that was sent."""

    connection: http.client.HTTPConnection

    is_reused: bool
    """Whether the connection was open before the request."""

    body: bytes
    """For a retry."""


class RestConnections:
    """Pool of connections to one server, opened on demand. Thread-safe.

    Args:
        tls: None means plain HTTP.
    """

    def __init__(
        self, host: str, port: int, *, tls: ssl.SSLContext | None, headers: dict[str, str]
    ) -> None:
        self.name = f"{host}:{port}"
        self._host = host
        self._port = port
        self._tls = tls
        self._headers = headers
        self._idle: list[http.client.HTTPConnection] = []

    def post(
        self, requests: Sequence[tuple[str, bytes]], *, deadline: float
    ) -> list[HopsworksResponse]:
        """Return the response for each path and body; all are sent before the first is read.

        Raises:
            DeadlineExceededError: A response did not arrive in time.
            UnavailableError: The server cannot be reached, or closed the connection.
            FailedPreconditionError: Its certificate is not trusted, or an answer is too large.
        """
        pending: list[_PendingRequest] = []
        answers: list[HopsworksResponse] = []
        try:
            for path, body in requests:
                pending.append(self._ask(path, body, deadline))
            for i, (path, _) in enumerate(requests):
                answers.append(self._answer(pending[i], path, deadline))
        except ssl.SSLCertVerificationError as error:
            message = (
                f"the certificate of {self.name} is not trusted: {error.verify_message}; set the "
                "CA "
                "certificate with ?ca_file=PATH"
            )
            raise FailedPreconditionError(message) from error
        except TimeoutError as error:
            raise DeadlineExceededError(
                f"{self.name} did not answer before the deadline"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise UnavailableError(f"cannot read features of {self.name}: {reason}") from error
        finally:
            # The next caller would receive the responses that were not read to the end.
            for request in pending[len(answers) :]:
                request.connection.close()
        return answers

    def close(self) -> None:
        """Close idle connections; idempotent."""
        while self._idle:
            self._idle.pop().close()

    def _ask(self, path: str, body: bytes, deadline: float) -> _PendingRequest:
        try:
            connection = self._idle.pop()
        except IndexError:
            return self._send(self._connect(), path, body, deadline, is_reused=False)
        try:
            return self._send(connection, path, body, deadline, is_reused=True)
        except (ConnectionError, http.client.HTTPException):
            connection.close()  # the server closed it while it was idle
            return self._send(self._connect(), path, body, deadline, is_reused=False)

    def _send(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        body: bytes,
        deadline: float,
        *,
        is_reused: bool,
    ) -> _PendingRequest:
        try:
            _set_timeout(connection, deadline)
            connection.request("POST", path, body, self._headers)
        except BaseException:
            connection.close()
            raise
        return _PendingRequest(connection=connection, is_reused=is_reused, body=body)

    def _answer(self, pending: _PendingRequest, path: str, deadline: float) -> HopsworksResponse:
        try:
            response = _response(pending.connection, deadline)
        except ConnectionError:
            if not pending.is_reused:
                raise
            pending.connection.close()
            retried = self._send(self._connect(), path, pending.body, deadline, is_reused=False)
            pending.connection = retried.connection
            response = _response(pending.connection, deadline)
        parts: list[bytes] = []
        size = 0
        while part := _part(response, pending.connection, deadline):
            parts.append(part)
            size += len(part)
            if size > MAX_ANSWER_BYTES:
                message = f"{self.name} returned more than {MAX_ANSWER_BYTES} bytes"
                raise FailedPreconditionError(message)
        response.close()  # read to its end, so that the connection can be reused
        if response.will_close or len(self._idle) >= _MAX_IDLE:
            pending.connection.close()
        else:
            self._idle.append(pending.connection)
        return HopsworksResponse(status=response.status, body=b"".join(parts))

    def _connect(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port)
        return http.client.HTTPSConnection(self._host, self._port, context=self._tls)


def _set_timeout(connection: http.client.HTTPConnection, deadline: float) -> None:
    """Set the timeout of the connection's next operation to the remaining time."""
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError
    connection.timeout = remaining_s
    opened: socket.socket | None = connection.sock
    if opened is not None:
        opened.settimeout(remaining_s)


def _response(connection: http.client.HTTPConnection, deadline: float) -> http.client.HTTPResponse:
    _set_timeout(connection, deadline)
    return connection.getresponse()


def _part(
    response: http.client.HTTPResponse, connection: http.client.HTTPConnection, deadline: float
) -> bytes:
    """Return the next part of the body; empty at its end."""
    _set_timeout(connection, deadline)
    part = response.read1(_READ_BYTES)
    if not part and response.length:
        raise ConnectionError(
            f"connection closed {response.length} bytes before the end of the response"
        )
    return part


DAMAGED: Final[Record] = b""
_US: Final = 1_000


class VectorReader:
    """Converts vectors of one view to records."""

    def __init__(self, view: FeatureView) -> None:
        self._view = view
        self._layout = RecordLayout(view)
        self._time = view.source.timestamp_field

    def columns(self, metadata: Sequence[tuple[str, str]]) -> Mapping[str, tuple[int, str]]:
        """Return position and type of each column in a vector.

        Raises:
            InvalidArgumentError: A feature of the view is missing, or its time column, which a time
                to live needs.
        """
        columns = {name: (i, kind) for i, (name, kind) in enumerate(metadata)}
        missing = [feature.name for feature in self._view.features if feature.name not in columns]
        if missing:
            available = ", ".join(columns)
            message = (
                f"view '{self._view.name}' of Hopsworks has no {missing[0]!r}; it has: {available}"
            )
            raise InvalidArgumentError(message)
        if self._view.ttl_s is not None and self._time not in columns:
            message = (
                f"view '{self._view.name}' of Hopsworks does not return {self._time!r}, which "
                "ttl_s "
                "needs; add that column to the view, or remove ttl_s"
            )
            raise InvalidArgumentError(message)
        return columns

    def record(
        self, vector: Sequence[Any], columns: Mapping[str, tuple[int, str]], now_us: int
    ) -> Record | None:
        """Return the record of a vector; None if it has no values, `DAMAGED` if unreadable."""
        values: list[Value | None] = []
        for feature in self._view.features:
            position, kind = columns[feature.name]
            try:
                values.append(_value(vector[position], kind, feature.datatype))
            except (ValueError, IndexError, TypeError):
                return DAMAGED
        if all(value is None for value in values):
            return None
        position, _ = columns.get(self._time, (-1, ""))
        event_us = now_us if position < 0 else _time_us(vector[position])
        return DAMAGED if event_us is None else self._layout.pack(event_us, values)


def _value(raw: Any, kind: str, datatype: Datatype) -> Value | None:  # noqa: ANN401  # of JSON
    if raw is None:
        return None
    if kind == "binary":
        try:
            raw = base64.b64decode(raw, validate=True)
        except binascii.Error as error:
            raise ValueError from error
    if datatype is Datatype.BOOL and raw in {0, 1}:
        raw = bool(raw)
    if misfit(datatype, raw):
        raise ValueError
    match datatype:
        case Datatype.FP32 | Datatype.FP64:
            return float(raw)
        case Datatype.BYTES:
            return raw.encode() if isinstance(raw, str) else bytes(raw)
        case _:
            value: Value = raw
            return value


def _time_us(raw: object) -> int | None:
    """Parse text, in UTC if it has no time zone, or milliseconds."""
    try:
        if isinstance(raw, int) and not isinstance(raw, bool):
            return raw * _US
        if isinstance(raw, str):
            time = datetime.fromisoformat(raw)
            return microseconds(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return None
    return None


API_KEY: Final = "HOPSWORKS_API_KEY"
_DEFAULT_PORT: Final = 4406
_PATH: Final = "/0.1.0/batch_feature_store"
_KEYS_PER_REQUEST: Final = 500
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_OK: Final = 200
_REFUSED: Final = frozenset({401, 403})
_BUSY: Final = frozenset({429, 500, 502, 503, 504})
_SHOWN: Final = 300


class _Column(msgspec.Struct, frozen=True):
    name: str = msgspec.field(name="featureName", default="")
    kind: str = msgspec.field(name="featureType", default="")


class _Vectors(msgspec.Struct, frozen=True):
    features: list[list[Any] | None]
    metadata: list[_Column]
    status: list[str]


class HopsworksOnlineStore:
    """An `OnlineStore` on a Hopsworks feature store.

    Args:
        versions: Versions of the views that are read in another version than 1.
    """

    def __init__(
        self, connections: RestConnections, store: str, *, versions: Mapping[str, int]
    ) -> None:
        self.name = f"hopsworks://{connections.name}/{store}"
        self._connections = connections
        self._store = store
        self._versions = versions
        self._views: dict[str, tuple[FeatureView, VectorReader]] = {}

    def expect(self, views: Sequence[FeatureView]) -> None:
        """Return records in the form of these views; others cannot be read."""
        for view in views:
            self._views[view.name] = (view, VectorReader(view))

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Mapping[Place, Record]:
        """Return the stored records; see `OnlineStore`."""
        deadline = time.monotonic() + timeout_s
        batches = list(self._parts(keys, views))
        answers = self._connections.post(
            [(_PATH, self._request_body(view, batch_keys)) for view, batch_keys in batches],
            deadline=deadline,
        )
        now_us = time.time_ns() // 1000
        records: dict[Place, Record] = {}
        for (view, some), answer in zip(batches, answers, strict=True):
            for key, record in self._records(view, some, answer, now_us):
                records[key, view.name] = record
        return records

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:  # noqa: ARG002  # as `OnlineStore`
        """Raise FailedPreconditionError: Hopsworks writes its store itself."""
        self._refuse(f"the values of {view}")

    def watermark(self, name: str) -> int | None:  # noqa: ARG002  # as `OnlineStore`
        """Return None: the server does not report how far a view was written."""
        return None

    def raise_watermark(self, name: str, event_us: int) -> None:  # noqa: ARG002  # as `OnlineStore`
        """Raise FailedPreconditionError: Hopsworks writes its store itself."""
        self._refuse(f"the watermark of {name}")

    def close(self) -> None:
        """Close all connections; idempotent."""
        self._connections.close()

    def _parts(
        self, keys: Sequence[Key], views: Sequence[str]
    ) -> Iterator[tuple[FeatureView, list[Key]]]:
        for name in views:
            entry = self._views.get(name)
            if entry is None:
                message = (
                    f"view {name!r} is not registered with this store; read it through a "
                    "FeatureReader"
                )
                raise InvalidArgumentError(message)
            view, _ = entry
            prefix = key_prefix(view)
            view_keys = [key for key in keys if key.startswith(prefix)]
            for start in range(0, len(view_keys), _KEYS_PER_REQUEST):
                yield view, view_keys[start : start + _KEYS_PER_REQUEST]

    def _request_body(self, view: FeatureView, keys: Sequence[Key]) -> bytes:
        entries = []
        for key in keys:
            entry: dict[str, int | str] = {}
            for entity, text in zip(view.entities, decode_key(view, key), strict=True):
                is_number = entity.datatype is Datatype.INT64
                entry[entity.join_key] = int(text) if is_number else text.decode()
            entries.append(entry)
        question = {
            "featureStoreName": self._store,
            "featureViewName": view.name,
            "featureViewVersion": self._versions.get(view.name, 1),
            "entries": entries,
            "passedFeatures": [],
            "metadataOptions": {"featureName": True, "featureType": True},
            "options": {"validatePassedFeatures": False, "includeDetailedStatus": False},
        }
        return msgspec.json.encode(question)

    def _records(
        self, view: FeatureView, keys: Sequence[Key], answer: HopsworksResponse, now_us: int
    ) -> Iterator[tuple[Key, Record]]:
        vectors = self._vectors(view, answer)
        _, reader = self._views[view.name]
        columns = reader.columns([(column.name, column.kind) for column in vectors.metadata])
        if not len(vectors.features) == len(vectors.status) == len(keys):
            message = (
                f"{self.name} returned {len(vectors.features)} vectors for {len(keys)} entities"
            )
            raise UnavailableError(message)
        for key, vector, status in zip(keys, vectors.features, vectors.status, strict=True):
            if status == "ERROR" or (vector is None and status != "MISSING"):
                raise UnavailableError(f"{self.name} could not read a vector of view '{view.name}'")
            record = None if vector is None else reader.record(vector, columns, now_us)
            if record is not None:
                yield key, record

    def _vectors(self, view: FeatureView, answer: HopsworksResponse) -> _Vectors:
        body_text = answer.body[:_SHOWN].decode(errors="replace").strip()
        cannot = f"cannot read view '{view.name}' of {self.name}"
        if answer.status in _REFUSED:
            message = (
                f"{cannot}: the server refused the key in {API_KEY} ({answer.status}: {body_text})"
            )
            raise FailedPreconditionError(message)
        if answer.status in _BUSY:
            raise UnavailableError(f"{cannot}: {answer.status}: {body_text}")
        if answer.status != _OK:
            version = self._versions.get(view.name, 1)
            message = (
                f"{cannot}: {answer.status}: {body_text}; version {version} may not exist; "
                f"name another one in the URL, ?{view.name}=2"
            )
            raise FailedPreconditionError(message)
        try:
            return msgspec.json.decode(answer.body, type=_Vectors)
        except UNDECODABLE as error:
            message = f"{cannot}: the response is not valid: {error}"
            raise FailedPreconditionError(message) from error

    def _refuse(self, description: str) -> NoReturn:
        message = (
            f"{description} cannot be written to {self.name}: Hopsworks writes it, "
            "Headrace only reads it"
        )
        raise FailedPreconditionError(message)


def open_hopsworks_store(
    url: str,
    *,
    namespace: str,  # noqa: ARG001  # as `StoreOpener`
    timeout_s: float,  # noqa: ARG001  # each read has its own timeout
    read_only: bool,  # noqa: ARG001  # always true
    environment: Mapping[str, str] = os.environ,
) -> HopsworksOnlineStore:
    """Return the store at `url`; connects on first use.

    Args:
        url: `hopsworks://HOST[:PORT]/FEATURE_STORE[?VIEW=VERSION&ca_file=PATH]`, with TLS;
            `hopsworks+http://` without TLS, on this machine only.

    Raises:
        InvalidArgumentError: The URL cannot be read.
        FailedPreconditionError: The environment has no API key, or the CA file cannot be read.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _DEFAULT_PORT
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        ca_file = options.pop("ca_file", None)
        versions = {name: int(version) for name, version in options.items()}
    except ValueError:
        host, port, ca_file, versions, parts = "", 0, None, {}, urlsplit("")
    # The client shows projects' stores with this suffix, and omits it in requests.
    store = unquote(parts.path.strip("/")).removesuffix("_featurestore")
    if not host or not store or "/" in store or "@" in parts.netloc:
        message = (
            "the URL of the Hopsworks store is not valid; use "
            f"hopsworks://HOST:{_DEFAULT_PORT}/FEATURE_STORE?VIEW=VERSION, and the key in {API_KEY}"
        )
        raise InvalidArgumentError(message)
    is_plain = parts.scheme == "hopsworks+http"
    if is_plain and host not in _LOOPBACK:
        message = f"the API key is not sent to {host} without TLS; use hopsworks://"
        raise InvalidArgumentError(message)
    key = environment.get(API_KEY, "").strip()
    remember_resolved(key, f"${{{API_KEY}}}")
    if not key or not key.isascii() or not key.isprintable():
        raise FailedPreconditionError(f"Hopsworks requires an API key; set {API_KEY}")
    headers = {"X-API-KEY": key, "Content-Type": "application/json"}
    tls = None if is_plain else _tls(ca_file)
    connections = RestConnections(host, port, tls=tls, headers=headers)
    return HopsworksOnlineStore(connections, store, versions=versions)


def _tls(ca_file: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as error:
        reason = error.strerror or str(error)
        raise FailedPreconditionError(f"cannot read ca_file {ca_file}: {reason}") from error
