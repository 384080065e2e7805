"""Client of schema registries with Confluent's HTTP API, and the wire format that names schemas.

Confluent's registry, Karapace, Redpanda and Apicurio's `ccompat` implement it
(https://docs.confluent.io/platform/current/schema-registry/develop/api.html). A value begins with a
zero byte and the schema's id in four bytes, big-endian; for Protobuf then the path of the message
in its file, as zigzag varints: the number of steps, then each step. A single zero means the first
message
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop/).
"""

import random
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import quote

import msgspec

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.core.backoff import Backoff
from headrace.core.error_kind import UNDECODABLE
from headrace.core.variables import url_filled_in
from headrace.streaming.formats.options import SchemaOptions, authorization, registry_host, tls

if TYPE_CHECKING:
    import httpx

_ACCEPTED: Final = "application/vnd.schemaregistry.v1+json, application/json;q=0.9"
_CONTENT: Final = "application/vnd.schemaregistry.v1+json"
_MAX_ANSWER_BYTES: Final = 16 << 20
_MAX_REFERENCES: Final = 256
_REMEMBERED: Final = 4096
_UNKNOWN_FOR_S: Final = 10.0
_TRIES: Final = 3
_BACKOFF: Final = Backoff(first_s=0.1, limit_s=1.0)
_NO_SUCH: Final = frozenset({40401, 40402, 40403})
"""The registry's error codes for a missing subject, version or schema."""
_REFUSED: Final = frozenset({400, 409, 422})
_T = TypeVar("_T", bound=msgspec.Struct)


class SchemaReference(msgspec.Struct, frozen=True):
    """A schema that another one uses, as a version of a subject."""

    name: str
    subject: str
    version: int


class Schema(msgspec.Struct, frozen=True, rename="camel"):
    """A schema as a registry stores it."""

    text: str = msgspec.field(name="schema")
    """The schema; for Protobuf, text or a descriptor in base64."""
    schema_type: str = "AVRO"
    references: tuple[SchemaReference, ...] = ()


class _Id(msgspec.Struct, frozen=True):
    id: int


class _Problem(msgspec.Struct, frozen=True):
    error_code: int = 0
    message: str = ""


class SchemaRegistry:
    """Client of a schema registry with a cache of immutable answers. Thread-safe.

    An unavailable registry, or one that rejects the credentials, raises `UnavailableError` after a
    few attempts: no record causes this, so records wait. `NotFoundError` is raised only if the
    registry itself responds that a subject, version or schema does not exist.

    Args:
        transport: Replaces the network in tests, as do `monotonic`, `pause` and `chance`.
    """

    def __init__(
        self,
        options: SchemaOptions,
        *,
        transport: "httpx.BaseTransport | None" = None,
        monotonic: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        import httpx  # noqa: PLC0415  # slow to import, and rarely used

        url = url_filled_in(options.registry, description="the registry's URL").rstrip("/")
        self._host = registry_host(url)
        is_tls = url.startswith("https:") or bool(options.ca_file)
        self._options = options
        self._client = httpx.Client(
            base_url=url,
            timeout=options.timeout_s,
            verify=tls(options) if is_tls else False,  # slow to load
            transport=transport,
            headers={"accept": _ACCEPTED},
            trust_env=False,
            limits=httpx.Limits(max_keepalive_connections=0),  # requests are rare
        )
        self._monotonic = monotonic
        self._pause = pause
        self._chance = chance
        self._knows_formats = True
        self._schemas: dict[tuple[str, str], Schema] = {}
        self._unknown: dict[str, tuple[float, NotFoundError]] = {}

    def by_id(self, number: int, *, wire: str = "") -> Schema:
        """Return the schema with this id.

        Args:
            wire: Requested representation, such as `serialized`; a registry may not support it.

        Raises:
            NotFoundError: The schema does not exist; cached for some seconds.
            UnavailableError: The registry is unavailable.
        """
        return self._immutable(f"/schemas/ids/{number}", wire)

    def newest(self, subject: str) -> int:
        """Return the id of a subject's newest version.

        Raises:
            NotFoundError: The subject has no version.
            UnavailableError: The registry is unavailable.
        """
        path = f"/subjects/{quote(subject, safe='')}/versions/latest"
        return self._read(self._ask("GET", path), _Id).id

    def find(self, subject: str, schema: Schema) -> int:
        """Return the id of exactly this schema in a subject.

        Raises:
            NotFoundError: The subject does not have it.
            UnavailableError: The registry is unavailable.
        """
        path = f"/subjects/{quote(subject, safe='')}"
        return self._read(self._ask("POST", path, schema), _Id).id

    def register(self, subject: str, schema: Schema) -> int:
        """Register a schema in a subject unless it is registered, and return its id.

        Raises:
            FailedPreconditionError: The schema is invalid, or incompatible with earlier versions.
            UnavailableError: The registry is unavailable.
        """
        path = f"/subjects/{quote(subject, safe='')}/versions"
        return self._read(self._ask("POST", path, schema), _Id).id

    def referenced(self, schema: Schema, *, wire: str = "") -> dict[str, Schema]:
        """Return all schemas that a schema uses, directly or not, by their names there.

        Raises:
            InvalidArgumentError: The schema uses too many schemas.
            NotFoundError: A used schema does not exist any more.
            UnavailableError: The registry is unavailable.
        """
        schemas: dict[str, Schema] = {}
        waiting = list(schema.references)
        while waiting:
            reference = waiting.pop()
            if reference.name in schemas:
                continue
            if len(schemas) >= _MAX_REFERENCES:
                msg = f"the schema refers to more than {_MAX_REFERENCES} others"
                raise InvalidArgumentError(msg)
            subject = quote(reference.subject, safe="")
            path = f"/subjects/{subject}/versions/{reference.version}"
            schemas[reference.name] = self._immutable(path, wire)
            waiting += schemas[reference.name].references
        return schemas

    def _immutable(self, path: str, wire: str) -> Schema:
        schema = self._schemas.get((path, wire))
        if schema is None:
            schema = self._read(self._ask("GET", path, wire=wire), Schema)
            if len(self._schemas) >= _REMEMBERED:
                self._schemas.clear()
            self._schemas[path, wire] = schema
        return schema

    def _ask(self, method: str, path: str, schema: Schema | None = None, wire: str = "") -> bytes:
        """Return the body of a response, after up to a few attempts."""
        missing = self._unknown.get(path)
        if missing is not None and schema is None and self._monotonic() < missing[0]:
            raise missing[1].with_traceback(None)
        body = None if schema is None else msgspec.json.encode(schema)
        for tried in range(1, _TRIES + 1):
            params = {"format": wire} if wire and self._knows_formats else {}
            try:
                return self._request_once(method, path, body, params)
            except FailedPreconditionError:
                if not params:
                    raise
                self._knows_formats = False
                return self._ask(method, path)
            except UnavailableError:
                if tried == _TRIES:
                    raise
            except NotFoundError as error:
                if len(self._unknown) >= _REMEMBERED:
                    self._unknown.clear()
                self._unknown[path] = (self._monotonic() + _UNKNOWN_FOR_S, error)
                raise
            self._pause(_BACKOFF.jittered_s(tried, chance=self._chance()))
        raise AssertionError(path)

    def _request_once(
        self, method: str, path: str, body: bytes | None, params: dict[str, str]
    ) -> bytes:
        import httpx  # noqa: PLC0415  # as above

        who = authorization(self._options)
        headers = {"authorization": f"Bearer {who}"} if isinstance(who, str) else {}
        if body is not None:
            headers["content-type"] = _CONTENT
        auth = who if isinstance(who, tuple) else None
        read = bytearray()
        try:
            with self._client.stream(
                method, path, content=body, params=params, headers=headers, auth=auth
            ) as answer:
                for part in answer.iter_bytes():
                    read += part
                    if len(read) > _MAX_ANSWER_BYTES:
                        raise self._away(f"answers more than {_MAX_ANSWER_BYTES} bytes")
        except httpx.HTTPError as error:
            raise self._away(f"does not answer: {str(error) or type(error).__name__}") from None
        if answer.status_code == httpx.codes.OK:
            return bytes(read)
        raise self._problem(answer.status_code, path, bytes(read))

    def _problem(self, status: int, path: str, body: bytes) -> HeadraceError:
        try:
            problem = msgspec.json.decode(body, type=_Problem)
        except UNDECODABLE:
            problem = _Problem()
        reason = problem.message[:300]
        if problem.error_code in _NO_SUCH:
            return NotFoundError(f"the schema registry at {self._host} has no {path}: {reason}")
        if status in _REFUSED:
            msg = f"the schema registry at {self._host} refuses it ({status}): {reason}"
            return FailedPreconditionError(msg)
        if status in {401, 403}:
            return self._away(f"refuses who asks ({status}); see user, password_file, token_file")
        if status == 404:  # noqa: PLR2004  # without an error code: not from a registry
            return self._away(f"does not know {path} (404): is that URL a schema registry's?")
        return self._away(f"answers {status}: {reason}")

    def _away(self, reason: str) -> UnavailableError:
        return UnavailableError(f"the schema registry at {self._host} {reason}")

    def _read(self, body: bytes, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(body, type=kind)
        except UNDECODABLE as error:
            raise self._away(f"answers something else than its API says: {error}") from None


_HEAD: Final = struct.Struct(">bi")
_MAX_STEPS: Final = 64
_MAX_VARINT: Final = 5  # bytes of 32 bits
_GUID_MAGIC: Final = 1


def schema_id(value: bytes) -> int:
    """Return the id of the schema that `value` was written with; content begins at `HEAD_BYTES`.

    Raises:
        InvalidArgumentError: The value does not begin as in the wire format.
    """
    if len(value) < HEAD_BYTES:
        msg = f"the value has {len(value)} bytes: too short for Confluent's wire format"
        raise InvalidArgumentError(msg)
    magic, schema_number = _HEAD.unpack_from(value)
    if magic:
        is_guid = magic == _GUID_MAGIC
        begin = "names its schema by a GUID" if is_guid else f"begins with the byte {magic & 255}"
        msg = f"the value {begin}, not with 0 and a schema's id as Confluent's wire format does"
        hint = "if it was written without a registry, leave options.registry out"
        raise InvalidArgumentError(f"{msg}; {hint}")
    if schema_number < 0:  # registries respond to a negative id with a misleading error
        msg = f"the value names the schema {schema_number}, which no registry has"
        raise InvalidArgumentError(msg)
    return int(schema_number)


def head(schema_number: int) -> bytes:
    """Return the prefix of an Avro value."""
    return _HEAD.pack(0, schema_number)


def message_path(value: bytes) -> tuple[tuple[int, ...], int]:
    """Return the path of a Protobuf value's message in its file, and the offset of its content.

    Raises:
        InvalidArgumentError: The path is invalid.
    """
    steps, offset = _zigzag(value, HEAD_BYTES)
    if not steps:
        return (0,), offset
    if not 0 < steps <= _MAX_STEPS:
        msg = f"the value's message indexes are {steps} steps deep, which no message is"
        raise InvalidArgumentError(msg)
    path = []
    for _ in range(steps):
        step, offset = _zigzag(value, offset)
        path.append(step)
    return tuple(path), offset


def message_head(schema_number: int, path: tuple[int, ...]) -> bytes:
    """Return the prefix of a Protobuf value."""
    if path == (0,):
        return head(schema_number) + b"\0"
    return head(schema_number) + b"".join(map(_varint, (len(path), *path)))


def _zigzag(value: bytes, offset: int) -> tuple[int, int]:
    number = shift = 0
    for end in range(offset, min(offset + _MAX_VARINT, len(value))):
        byte = value[end]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004  # the last one has no high bit
            return (number >> 1) ^ -(number & 1), end + 1
        shift += 7
    msg = "the value's message indexes are broken off or too long"
    raise InvalidArgumentError(msg)


def _varint(number: int) -> bytes:
    number <<= 1
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004  # seven bits per byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


HEAD_BYTES: Final = _HEAD.size
