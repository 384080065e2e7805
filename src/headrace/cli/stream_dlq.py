"""`headrace stream dlq`: look at records that got no answer, and put them back."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.cli.options import DEFAULT_HOME, Home, Json, Server
from headrace.cli.stream_topics import BrokerUrl, text_or_base64

if TYPE_CHECKING:
    from headrace.streaming.broker import Broker
    from headrace.streaming.dead_letters import Letter

app = typer.Typer(
    no_args_is_help=True, help="Dead letters: records that got no answer. list, redrive."
)

_SHOWN: Final = 60
_MOST: Final = 1_000_000

_Name = Annotated[str, typer.Argument(help="The stream.", show_default=False)]
_File = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        help="The spec file that has it.",
        exists=True,
        dir_okay=False,
        show_default="what runs, else headrace.yaml",
    ),
]
_From = Annotated[
    list[str] | None,
    typer.Option(
        "--from",
        metavar="TOPIC",
        help="With --broker: what the stream reads, where letters may go back to.",
        show_default=False,
    ),
]
_Error = Annotated[
    str,
    typer.Option(
        "--error", metavar="CODE", help="Only those, as INVALID_ARGUMENT.", show_default="all"
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Of:
    """Where a stream's dead letters are."""

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
    server: str | None,
    home: Path,
) -> Iterator[_Of]:
    from headrace.cli.stream_find import find_stream, open_broker_of
    from headrace.core import FailedPreconditionError

    if broker:  # of a stream without a file
        url, topic, read = broker, f"{name}-dead-letters", tuple(sources or ())
    else:
        stream = find_stream(name, file=file, server=server, home=home)
        url, topic, read = stream.source.broker, stream.dead_letter_topic, stream.source.topics
        if not topic:
            policy = stream.errors.policy
            msg = f"stream '{name}' keeps no dead letters: its policy is '{policy}'"
            raise FailedPreconditionError(msg)
    with closing(open_broker_of(url, home)) as opened:
        yield _Of(broker=opened, topic=topic, sources=read)


@app.command("list")
def list_(
    name: _Name,
    *,
    error: _Error = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many at most.")] = 100,
    broker: BrokerUrl = "",
    file: _File = None,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show the dead letters that nobody put back: where they were, why they died, when.

    For example:

        headrace stream dlq list fraud

        headrace stream dlq list fraud --error INVALID_ARGUMENT --json
    """
    from headrace.cli.output import say, show, table, write_json
    from headrace.core import Code, NotFoundError
    from headrace.streaming.dead_letters import check_code, read_letters

    code = check_code(error, (str(one) for one in Code))
    with _opened(name, broker=broker, sources=None, file=file, server=server, home=home) as of:
        try:
            found = read_letters(
                of.broker, stream=name, topic=of.topic, most=_MOST if code else limit
            )
        except NotFoundError:
            found = []  # it is made with the first worker
    letters = [letter for letter in found if code in {"", letter.code}][:limit]
    if json:
        write_json([_plain(letter) for letter in letters])
    elif not letters:
        say(f"no dead letters in {of.topic}")
    else:
        head = ("topic", "partition", "offset", "error", "died", "key", "why")
        show(table((_row(letter) for letter in letters), *head))


@app.command()
def redrive(
    name: _Name,
    *,
    error: _Error = "",
    limit: Annotated[
        int | None,
        typer.Option("--limit", "-n", min=1, help="So many at most.", show_default="all"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be put back, and do nothing.")
    ] = False,
    broker: BrokerUrl = "",
    source: _From = None,
    file: _File = None,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Put dead letters back into the topic that they came from; each once.

    Those of other errors are kept for another time. What dies again is a dead letter again, with
    its attempts added up.

    For example:

        headrace stream dlq redrive fraud --dry-run

        headrace stream dlq redrive fraud --error UNAVAILABLE --limit 1000
    """
    from headrace.cli.output import say, write_json
    from headrace.core import Code, InvalidArgumentError, NotFoundError
    from headrace.streaming.dead_letters import Choice, Redriven, check_code, count, read_letters
    from headrace.streaming.dead_letters import redrive as put_back

    code = check_code(error, (str(one) for one in Code))
    with _opened(name, broker=broker, sources=source, file=file, server=server, home=home) as of:
        if not of.sources:
            msg = "--broker also needs --from: the topics that letters may go back to"
            raise InvalidArgumentError(msg)
        choice = Choice(
            code=code,
            limit=limit,
            partitions={topic: len(of.broker.ends(topic)) for topic in of.sources},
        )
        try:
            letters = read_letters(of.broker, stream=name, topic=of.topic, most=_MOST)
        except NotFoundError:
            letters = []
        would = count(letters, choice)
        done = Redriven(would, 0)
        if would and not dry_run:
            done = put_back(of.broker, stream=name, topic=of.topic, choice=choice)
    if json:
        write_json({"redriven": done.redriven, "dry_run": dry_run, "letters": len(letters)})
        return
    noun = f"{done.redriven:,} dead letter{'' if done.redriven == 1 else 's'}"
    to = ", ".join(of.sources)
    say(f"{'would put' if dry_run else 'put'} {noun} of {len(letters):,} back into {to}")


def _row(letter: "Letter") -> tuple[str, ...]:
    from headrace.core.text import iso_text

    key = text_or_base64(letter.record.key)
    return (
        letter.topic or "?",
        "?" if letter.partition is None else str(letter.partition),
        "?" if letter.offset is None else str(letter.offset),
        letter.code or "?",
        "?" if letter.died_s is None else iso_text(letter.died_s),
        "-" if key is None else str(key)[:_SHOWN],
        letter.error[: 2 * _SHOWN],
    )


def _plain(letter: "Letter") -> dict[str, object]:
    return {
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "error": letter.code,
        "message": letter.error,
        "attempts": letter.attempts,
        "died_s": letter.died_s,
        "key": text_or_base64(letter.record.key),
        "value": text_or_base64(letter.record.value),
        "letter": {
            "topic": letter.record.place.topic,
            "partition": letter.record.place.partition,
            "offset": letter.record.offset,
        },
    }
