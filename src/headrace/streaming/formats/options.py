"""Options of formats with schemas, and the names and values of answers' fields in them."""

import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import urlsplit

import msgspec
import numpy as np

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.core.redact import VARIABLE, remember_resolved
from headrace.core.variables import filled_in
from headrace.streaming.formats import Column, FieldLayout

T = TypeVar("T")
_MAX_FILE: Final = 16 << 20
_OF_REGISTRY: Final = frozenset(
    {"user", "password", "password_file", "token", "token_file", "ca_file", "subject", "register"}
)
_WHAT: Final = "an option of the format"


class SchemaOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The `options` of the formats `avro` and `protobuf`."""

    registry: str = ""
    """URL of a schema registry; empty for none: then records are only their values. `${NAME}` is an
    environment variable, here and in the next four."""
    user: str = ""
    """Name for basic authentication."""
    password: str = ""
    """Password as `${NAME}`: specs contain no secrets."""
    password_file: str = ""
    """File of the password; read at each request, so that it can be changed."""
    token: str = ""
    """Bearer token as `${NAME}`."""
    token_file: str = ""
    """File of the token; read at each request."""
    ca_file: str = ""
    """CA certificates for the registry; empty for the system's."""
    timeout_s: float = 10.0
    """Timeout of one request."""
    subject: str = ""
    """Subject of the answers' schema."""
    register: bool = False
    """Whether a schema is registered if the subject does not have it."""
    schema_file: str = ""
    """Avro. For reading, the schema of records without a registry. For writing, the answers'
    schema; empty for the subject's newest, or a schema generated from the model's outputs."""
    reader_schema_file: str = ""
    """Avro: reader schema with the fields and defaults to read, for Avro's schema resolution."""
    descriptor_file: str = ""
    """Protobuf: a serialized FileDescriptorSet, used as `schema_file` is."""
    message: str = ""
    """Protobuf: full name of the records' message; empty if there is only one."""
    names: dict[str, str] = {}
    """Names in the answers, by output or passed field."""
    types: dict[str, Datatype] = {}
    """Datatypes of passed fields, for generated schemas."""


def read_options(
    kind: str, given: Mapping[str, Any], unused: frozenset[str] = frozenset()
) -> SchemaOptions:
    """Return the validated options of a format.

    Args:
        unused: Options that this format does not support.

    Raises:
        InvalidArgumentError: An option is invalid; the message names it.
    """
    try:
        options = msgspec.convert(dict(given), SchemaOptions)
    except msgspec.ValidationError as error:
        msg = f"options of the format {kind}: {error}"
        raise InvalidArgumentError(msg) from None
    for problem in _problems(options, unused):
        raise InvalidArgumentError(f"options of the format {kind}: {problem}")
    if options.registry and not options.registry.startswith("${"):
        registry_host(VARIABLE.sub("1", options.registry))
    return options


def _problems(options: SchemaOptions, unused: frozenset[str]) -> Iterator[str]:
    """Yield what is wrong with options, beginning with the option's name."""
    names = [name for name in options.__struct_fields__ if getattr(options, name)]
    for name in names:
        if name in unused:
            yield f"{name} is not for this format"
        if name in {"password", "token"} and not VARIABLE.fullmatch(getattr(options, name)):
            yield f"{name} is a secret: write ${{NAME}}, for a variable, or name a file"
        if name in _OF_REGISTRY and not options.registry:
            yield f"{name} is of a registry, and options.registry names none"
    if options.timeout_s <= 0:
        yield "timeout_s is more than 0"
    if options.register and not options.subject:
        yield "register needs options.subject: the subject whose schemas the answers have"
    if options.user and (options.token or options.token_file):
        yield "token and user are two ways to prove the same: name one"
    if "@" in VARIABLE.sub("", options.registry).partition("://")[2].partition("/")[0]:
        yield "registry holds a password: name user and password_file instead"


def registry_host(url: str) -> str:
    """Return the host and port of a registry's URL, for messages.

    Raises:
        InvalidArgumentError: It is no HTTP URL.
    """
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:  # an invalid host or port
        parts, port = urlsplit(""), ""
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        msg = "options.registry is no URL as http://registry:8081"
        raise InvalidArgumentError(msg)
    return f"{parts.hostname}{port}"


def read_file(path: str, description: str) -> bytes:
    """Return the content of a file that an option names.

    Raises:
        FailedPreconditionError: The file cannot be read, or is larger than any schema.
    """
    try:
        with Path(path).expanduser().open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as error:
        msg = f"options.{description}: '{path}' cannot be read: {error.strerror or error}"
        raise FailedPreconditionError(msg) from None
    if len(content) > _MAX_FILE:
        msg = f"options.{description}: '{path}' is larger than {_MAX_FILE} bytes"
        raise FailedPreconditionError(msg)
    return content


def from_file(path: str, description: str, read: Callable[[bytes], T]) -> T:
    """Return what `read` finds in a file that an option names.

    Raises:
        FailedPreconditionError: The file cannot be read.
        InvalidArgumentError: Its content is not valid.
    """
    try:
        return read(read_file(path, description))
    except (InvalidArgumentError, UnicodeDecodeError) as error:
        msg = f"options.{description}: '{path}': {error}"
        raise InvalidArgumentError(msg) from None


def authorization(options: SchemaOptions) -> tuple[str, str] | str | None:
    """Return the current user and password, or bearer token; None for neither."""
    token = _secret(options, "token")
    if token or not options.user:
        return token or None
    return filled_in(options.user, description=_WHAT), _secret(options, "password")


def tls(options: SchemaOptions) -> ssl.SSLContext:
    """Return the TLS context for the registry, with the system's CA certificates by default."""
    path = str(Path(options.ca_file).expanduser()) if options.ca_file else None
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        msg = f"options.ca_file: '{path}' cannot be used: {error}"
        raise FailedPreconditionError(msg) from None


def _secret(options: SchemaOptions, name: str) -> str:
    """Return the content of a secret's file, or else its variable; empty for neither."""
    path: str = getattr(options, f"{name}_file")
    if not path:
        return filled_in(getattr(options, name), description=_WHAT)
    try:
        secret = read_file(path, f"{name}_file").decode("ascii").strip()
    except UnicodeDecodeError:
        msg = f"options.{name}_file: '{path}' holds something else than a secret in ASCII"
        raise FailedPreconditionError(msg) from None
    remember_resolved(secret, f"file:{path}")
    return secret


_ODD: Final = re.compile(r"[^A-Za-z0-9_]")


def field_names(layout: FieldLayout, names: Mapping[str, str]) -> dict[str, str]:
    """Return the name in the answers of each of their fields.

    Schemas allow letters, digits and underscores: other characters become underscores, unless
    `names` has a name for the field.

    Raises:
        InvalidArgumentError: Two fields have the same name.
    """
    called_by_name: dict[str, str] = {}
    taken: dict[str, str] = {}
    for name in (*layout.answered, *(spec.name for spec in layout.outputs)):
        plain = _ODD.sub("_", name)
        called = names.get(name) or (f"_{plain}" if plain[:1].isdigit() else plain)
        if called in taken:
            msg = f"answers would call both '{taken[called]}' and '{name}' '{called}': see names"
            raise InvalidArgumentError(f"{msg} in the options")
        taken[called] = name
        called_by_name[name] = called
    return called_by_name


def plain_values(column: Column, rows: int, *, is_scalar: bool, is_text: bool) -> list[object]:
    """Return a value for each row: numbers, texts or `bytes`, or lists of them.

    Args:
        is_scalar: The schema has a single value where the output may have a list of one.
        is_text: The schema has text for BYTES.

    Raises:
        InvalidArgumentError: A text is not UTF-8.
    """
    if not isinstance(column, np.ndarray):
        return list(column)
    array = column.reshape(rows) if is_scalar else column
    values = cast("list[object]", array.tolist())
    if array.dtype.kind not in "OSU":
        return values
    return [_element(value, is_text=is_text) for value in values]


def _element(value: object, *, is_text: bool) -> object:
    if isinstance(value, list):
        return [_element(element, is_text=is_text) for element in value]
    if not is_text:
        return value.encode() if isinstance(value, str) else value
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            msg = "an output's BYTES are not UTF-8, but the answers' schema has a text there"
            raise InvalidArgumentError(msg) from None
    return value
