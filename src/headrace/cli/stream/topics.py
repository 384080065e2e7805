"""`headrace stream send`, `read` and `dlq`: records of topics and dead letters."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import base64
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Final

import msgspec

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import (
    CommandGroup,
    ControlPlaneOptions,
    Home,
    Json,
    SpecOrRunning,
    StreamName,
    argument,
    file_option,
    moment,
    option,
)
from headrace.cli.base.output import Column, say, show_answer, show_document, write
from headrace.cli.stream.find import BrokerUrl, find_stream, open_broker_of
from headrace.core import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SystemClock,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.core.text import iso_text
from headrace.streaming.dead_letters import Choice, Redriven, check_code, read_dead_letters
from headrace.streaming.dead_letters import redrive as put_back

if TYPE_CHECKING:
    from headrace.streaming.broker import Broker
    from headrace.streaming.dead_letters import DeadLetter
    from headrace.streaming.records import NewRecord, Record, TopicPartition

_MAX_CONCURRENT: Final = 1000
_POLL_S: Final = 0.2
MAX_LINE_BYTES: Final = 16 << 20
_Limit = Annotated[
    int | None, option("Maximum number of records.", "--limit", "-n", min=1, shown="all")
]
_Topic = Annotated[str, argument("Topic name.", shown=False)]


def send(
    topic: _Topic,
    *,
    broker: BrokerUrl = "",
    file: Annotated[Path | None, file_option("Lines.", "--file", "-f", shown="stdin")] = None,
    key: Annotated[
        str,
        option(
            "Field of JSON objects that is the record key: records with the same key keep their "
            "order.",
            metavar="FIELD",
        ),
    ] = "",
    partitions: Annotated[int, option("Partitions of a new topic.", min=1, max=1024)] = 1,
    home: Home = DEFAULT_HOME,
) -> None:
    """Write each line of the input as a record; creates the topic if it does not exist.

    For example:

        headrace stream send in --broker log:demo < rows.jsonl

        headrace stream send in --broker kafka://localhost:9092 --key customer -f rows.jsonl
    """
    count = 0
    with closing(open_broker_of(broker, home)) as opened:
        opened.create_topic(topic, partitions=partitions)
        with nullcontext(sys.stdin.buffer) if file is None else file.open("rb") as stream:
            records = new_records(topic, lines_of(stream), key=key)
            while some := list(itertools.islice(records, _MAX_CONCURRENT)):
                opened.send(some)
                count += len(some)
    say(f"sent {count:,} record{'' if count == 1 else 's'} to {topic}")


def lines_of(stream: BinaryIO) -> Iterator[bytes]:
    """Yield lines without line ends; empty ones are skipped.

    Raises:
        InvalidArgumentError: A line is longer than records may be.
    """
    for number in itertools.count(1):
        line = stream.readline(MAX_LINE_BYTES + 1)
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            msg = f"line {number} has more than {MAX_LINE_BYTES >> 20} MiB; no records were sent"
            raise InvalidArgumentError(msg)
        line = line.rstrip(b"\r\n")
        if line:
            yield line


def new_records(topic: str, lines: Iterable[bytes], *, key: str) -> "Iterator[NewRecord]":
    """Yield a record for each line; its key is the field `key`, if that is set.

    Raises:
        InvalidArgumentError: A line has no such field.
    """
    from headrace.streaming.records import NewRecord

    for number, line in enumerate(lines, start=1):
        if not key:
            yield NewRecord(topic=topic, key=None, value=line)
            continue
        try:
            value = msgspec.json.decode(line, type=dict[str, Any]).get(key)
        except UNDECODABLE:
            value = None
        if not isinstance(value, str | int) or isinstance(value, bool):
            msg = f"record {number} is not a JSON object whose field '{key}' is a string or integer"
            raise InvalidArgumentError(msg)
        yield NewRecord(topic=topic, key=str(value).encode(), value=line)


def read(
    topic: _Topic,
    *,
    broker: BrokerUrl = "",
    since: Annotated[
        str,
        option(
            "Only records written since then: 2026-11-27T06:00Z, or -2h.",
            "--from",
            metavar="TIME",
            shown="all records",
        ),
    ] = "",
    limit: _Limit = None,
    follow: Annotated[
        bool, option("Keep reading until Ctrl-C; also waits until the topic exists.", "--follow")
    ] = False,
    json: Annotated[
        bool,
        option("Print one JSON object per record: key, value, headers, offset, time.", "--json"),
    ] = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print the values of a topic's records, one per line; commits no offsets.

    For example:

        headrace stream read out --broker log:demo

        headrace stream read out --broker kafka://localhost:9092 --from -5m --follow --json
    """
    with closing(open_broker_of(broker, home)) as opened:
        after = first_offsets(opened, topic, waits=follow)
        if since:
            after = dict(opened.offsets_at(topic, moment(since, now=SystemClock().now())))
        records = records_of(opened, topic, after, follow=follow)
        for record in itertools.islice(records, limit):
            write(record_json(record) if json else value_text(record))


def first_offsets(broker: "Broker", topic: str, *, waits: bool) -> "dict[TopicPartition, int]":
    """Return the first offset of each partition.

    Args:
        waits: Whether to wait for a missing topic.

    Raises:
        NotFoundError: The topic does not exist.
    """
    while True:
        try:
            return {partition: first for partition, (first, _) in broker.ends(topic).items()}
        except NotFoundError:
            if not waits:
                raise
        time.sleep(_POLL_S)


def records_of(
    broker: "Broker", topic: str, after: "dict[TopicPartition, int]", *, follow: bool
) -> "Iterator[Record]":
    """Yield records from these offsets on, ordered by partition; endless with `follow`."""
    after = dict(after)
    while True:
        ends = {partition: end for partition, (_, end) in broker.ends(topic).items()}
        unread = {
            partition: offset
            for partition, offset in after.items()
            if offset < ends.get(partition, 0)
        }
        some = broker.read(topic, after=unread, max_records=_MAX_CONCURRENT) if unread else []
        for record in some:
            after[record.topic_partition] = record.offset + 1
        yield from some
        if not some and not follow:
            return
        if not some:
            time.sleep(_POLL_S)


def value_text(record: "Record") -> str:
    """Return a value as a line; bytes that are not text as a Python literal."""
    if record.value is None:
        return ""
    try:
        return record.value.decode("utf-8")
    except UnicodeDecodeError:
        return repr(record.value)


def record_json(record: "Record") -> str:
    """Return a record as a JSON object in one line; bytes that are not text in base64."""
    return msgspec.json.encode(
        {
            "topic": record.topic_partition.topic,
            "partition": record.topic_partition.partition,
            "offset": record.offset,
            "timestamp_s": record.timestamp_s,
            "key": text_or_base64(record.key),
            "value": text_or_base64(record.value),
            "headers": {name: text_or_base64(value) for name, value in record.headers},
        }
    ).decode()


def text_or_base64(value: bytes | None) -> object:
    """Return bytes as a JSON value: as text, or `{"b64": ...}`."""
    if value is None:
        return None
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


app = CommandGroup(help="Dead letters: records without an answer. list, redrive.")
_SHOWN: Final = 60
_MOST: Final = 1_000_000
_From = Annotated[
    list[str] | None,
    option(
        "With --broker: source topics of the stream, to which dead letters may be redriven.",
        "--from",
        metavar="TOPIC",
        shown=False,
    ),
]
_Error = Annotated[
    str,
    option(
        "Only dead letters with this error code, such as INVALID_ARGUMENT.",
        "--error",
        metavar="CODE",
        shown="all",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Of:
    """Location of a stream's dead letters."""

    broker: "Broker"
    topic: str
    sources: tuple[str, ...]


@contextmanager
def _opened(
    name: str,
    *,
    broker: str,
    sources: list[str] | None,
    file: Path | None,
    plane: ControlPlaneOptions,
) -> Iterator[_Of]:

    if broker:  # for a stream without a file
        url, topic, read = broker, f"{name}-dead-letters", tuple(sources or ())
    else:
        stream = find_stream(name, file=file, plane=plane)
        url, topic, read = stream.source.broker, stream.dead_letter_topic, stream.source.topics
        if not topic:
            policy = stream.errors.policy
            msg = f"stream '{name}' has no dead letters: its policy is '{policy}'"
            raise FailedPreconditionError(msg)
    with closing(open_broker_of(url, plane.home)) as opened:
        yield _Of(broker=opened, topic=topic, sources=read)


@app.command("list")
def list_(
    name: StreamName,
    *,
    error: _Error = "",
    limit: Annotated[int, option("Maximum number of dead letters.", "--limit", "-n", min=1)] = 100,
    broker: BrokerUrl = "",
    file: SpecOrRunning = None,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """List dead letters that were not redriven: source, error and time.

    For example:

        headrace stream dlq list fraud

        headrace stream dlq list fraud --error INVALID_ARGUMENT --json
    """
    code = check_code(error)
    with _opened(name, broker=broker, sources=None, file=file, plane=plane) as of:
        try:
            dead_letters = read_dead_letters(
                of.broker, stream=name, topic=of.topic, max_records=_MOST if code else limit
            )
        except NotFoundError:
            dead_letters = []  # the first worker creates it
    matches = [letter for letter in dead_letters if code in {"", letter.code}][:limit]
    empty = f"no dead letters in {of.topic}"
    documents = list(map(letter_document, matches))
    show_document(documents, documents, LETTER_COLUMNS, json=json, empty=empty)


@app.command()
def redrive(
    name: StreamName,
    *,
    error: _Error = "",
    limit: _Limit = None,
    dry_run: Annotated[
        bool, option("Show what would be redriven without doing it.", "--dry-run")
    ] = False,
    broker: BrokerUrl = "",
    source: _From = None,
    file: SpecOrRunning = None,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Redrive dead letters to their source topic, each once.

    Dead letters with other errors are kept. A record that fails again becomes a dead letter again,
    and its attempts are added up.

    For example:

        headrace stream dlq redrive fraud --dry-run

        headrace stream dlq redrive fraud --error UNAVAILABLE --limit 1000
    """
    from headrace.streaming.dead_letters import count

    code = check_code(error)
    with _opened(name, broker=broker, sources=source, file=file, plane=plane) as of:
        if not of.sources:
            msg = "--broker also needs --from: the source topics"
            raise InvalidArgumentError(msg)
        choice = Choice(
            code=code,
            limit=limit,
            partitions={topic: len(of.broker.ends(topic)) for topic in of.sources},
        )
        try:
            dead_letters = read_dead_letters(
                of.broker, stream=name, topic=of.topic, max_records=_MOST
            )
        except NotFoundError:
            dead_letters = []
        affected = count(dead_letters, choice)
        done = Redriven(affected, 0)
        if affected and not dry_run:
            done = put_back(of.broker, stream=name, topic=of.topic, choice=choice)
    noun = f"{done.redriven:,} dead letter{'' if done.redriven == 1 else 's'}"
    to = ", ".join(of.sources)
    line = f"{'would put' if dry_run else 'put'} {noun} of {len(dead_letters):,} back into {to}"
    answer = {"redriven": done.redriven, "dry_run": dry_run, "letters": len(dead_letters)}
    show_answer(answer, line, json=json)


def _known(key: str) -> Callable[[Any], str]:
    return lambda letter: "?" if letter[key] in (None, "") else str(letter[key])


LETTER_COLUMNS: Final[dict[str, Column]] = {
    "topic": _known("topic"),
    "partition": _known("partition"),
    "offset": _known("offset"),
    "error": _known("error"),
    "died": lambda letter: "?" if letter["died_s"] is None else iso_text(letter["died_s"]),
    "key": lambda letter: "-" if letter["key"] is None else str(letter["key"])[:_SHOWN],
    "why": lambda letter: letter["message"][: 2 * _SHOWN],
}


def letter_document(dead_letter: "DeadLetter") -> dict[str, object]:
    """Return a dead letter as a JSON object."""
    return {
        "topic": dead_letter.topic,
        "partition": dead_letter.partition,
        "offset": dead_letter.offset,
        "error": dead_letter.code,
        "message": dead_letter.error,
        "attempts": dead_letter.attempts,
        "died_s": dead_letter.died_s,
        "key": text_or_base64(dead_letter.record.key),
        "value": text_or_base64(dead_letter.record.value),
        "letter": {
            "topic": dead_letter.record.topic_partition.topic,
            "partition": dead_letter.record.topic_partition.partition,
            "offset": dead_letter.record.offset,
        },
    }
