"""Validation and encodings shared by brokers: topic names, memberships, and bytes as text."""

import math
import re
import ssl
from collections.abc import Collection, Mapping, Sequence
from typing import Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlencode, urlsplit, urlunsplit

from headrace.core import FailedPreconditionError, InvalidArgumentError, UnsupportedError
from headrace.streaming.broker import Membership
from headrace.streaming.records import Header, NewRecord, TopicPartition

_TOPIC: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")


def check_topic(topic: str) -> str:
    """Return `topic` if it is a valid name.

    Raises:
        InvalidArgumentError: The name is not valid.
    """
    if _TOPIC.fullmatch(topic) is None or topic in {".", ".."}:
        message = (
            f"{topic[:_SHOWN]!r} is not a valid topic name: use 1 to 249 letters, digits, "
            "'.', '_' or '-'"
        )
        raise InvalidArgumentError(message)
    return topic


_MAX_NAME: Final = 249
_SHOWN: Final = 60


def check_membership(membership: Membership) -> None:
    """Raise InvalidArgumentError if a membership is invalid."""
    check_text("group", membership.group)
    check_text("member", membership.member)
    if not membership.topics:
        raise InvalidArgumentError(f"group '{membership.group}' reads no topic; name at least one")
    for topic in membership.topics:
        check_topic(topic)
    if not 0 < membership.session_timeout_s < math.inf:
        message = f"session_timeout_s must be greater than 0, not {membership.session_timeout_s}"
        raise InvalidArgumentError(message)
    if membership.start_s is not None and not math.isfinite(membership.start_s):
        raise InvalidArgumentError(f"start_s must be a Unix time, not {membership.start_s}")


def check_text(description: str, name: str) -> None:
    """Raise InvalidArgumentError if `name` is not a valid group or member name."""
    if not 1 <= len(name) <= _MAX_NAME or not name.isprintable():
        message = f"{description} {name[:_SHOWN]!r} must be 1 to {_MAX_NAME} printable characters"
        raise InvalidArgumentError(message)


def check_one_partition(partitions: int, *, kind: str) -> None:
    """Raise if a topic of a broker without partitions is created with more than one."""
    if partitions < 1:
        raise InvalidArgumentError(f"a topic needs at least 1 partition, not {partitions}")
    if partitions > 1:
        message = (
            f"a {kind} topic has one partition, which members share record by record; "
            f"set partitions to 1 instead of {partitions}"
        )
        raise UnsupportedError(message)


def check_records(records: Sequence[NewRecord], *, has_partitions: bool = False) -> None:
    """Raise InvalidArgumentError if a record has an invalid topic or partition."""
    for record in records:
        check_topic(record.topic)
        if not has_partitions:
            check_partition(TopicPartition(record.topic, record.partition or 0))


def check_start_offsets(
    offsets: Mapping[TopicPartition, int], partitions: Collection[TopicPartition]
) -> None:
    """Raise InvalidArgumentError if a listener gave an offset for a partition not among these."""
    if unassigned := set(offsets) - set(partitions):
        message = f"the listener gave an offset for {min(unassigned)}, which is not assigned"
        raise InvalidArgumentError(message)


def check_partition(partition: TopicPartition) -> None:
    """Raise InvalidArgumentError if a broker without partitions does not have this partition."""
    check_topic(partition.topic)
    if partition.partition != 0:
        raise InvalidArgumentError(
            f"{partition.topic} has only partition 0, not {partition.partition}"
        )


def split_options(url: str, names: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return `url` without the query options in `names`, and these options."""
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    own_options = {name: value for name, value in pairs if name in names}
    rest = urlencode([(name, value) for name, value in pairs if name not in names])
    return urlunsplit(parts._replace(query=rest)), own_options


def positive(options: Mapping[str, str], name: str, default: float) -> float:
    """Return a positive number from the options of a URL."""
    text = options.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        message = f"{name}={text[:_SHOWN]!r} in the broker's URL must be a number greater than 0"
        raise InvalidArgumentError(message)
    return number


TLS_FILES: Final = ("tls_ca_file", "tls_cert_file", "tls_key_file")


def tls_context(options: Mapping[str, str], *, server: str) -> ssl.SSLContext:
    """Return the TLS context of the files in a broker's URL, or with the system's certificates.

    Raises:
        FailedPreconditionError: A file cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=options.get("tls_ca_file"))
        if "tls_cert_file" in options:
            context.load_cert_chain(options["tls_cert_file"], options.get("tls_key_file"))
    except OSError as error:
        message = f"a file for TLS to {server} cannot be read: {error}"
        raise FailedPreconditionError(message) from error
    return context


def shown(url: str) -> str:
    """Return `url` for messages, without secrets."""
    scheme = url.partition(":")[0][:_SHOWN]
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return f"{scheme}://…"
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return f"{scheme}://…"  # a password with a slash that is not escaped
    return f"{scheme}://{parts.hostname or ''}{port}{parts.path.rstrip('/')}"


_SAFE: Final = " !#$'()*+,-./:;<>?@[]^_`{|}~"


def quoted(key: bytes) -> str:
    """Return a key in quotes, percent-encoded where needed."""
    return f'"{quote(key, safe=_SAFE)}"'


def unquoted(text: str) -> bytes:
    """Return the key of a quoted text; text without quotes is decoded as well."""
    inner = text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text
    return unquote_to_bytes(inner)


def packed(headers: Sequence[Header]) -> str:
    """Return headers encoded as the query of a URL."""
    return "&".join(
        f"{quote(name.encode('utf-8', 'surrogateescape'), safe='')}={quote(value, safe='')}"
        for name, value in headers
    )


def unpacked(text: str) -> tuple[Header, ...]:
    """Return the headers in an output of `packed`."""
    parts = (part.partition("=") for part in text.split("&"))
    return tuple(
        (unquote_to_bytes(name).decode("utf-8", "surrogateescape"), unquote_to_bytes(value))
        for name, _, value in parts
    )
