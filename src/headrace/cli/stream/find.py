"""Stream of a command, and streams as table rows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from headrace.cli.base.options import AllowCode, ControlPlaneOptions, name_from, option
from headrace.cli.base.output import Column
from headrace.core import InvalidArgumentError, NotFoundError
from headrace.core.text import duration_text, number_text

if TYPE_CHECKING:
    from headrace.core.spec.parse import SystemSpec
    from headrace.core.spec.streams import StreamSpec
    from headrace.streaming.broker import Broker

SPEC_FILE: Final = Path("headrace.yaml")


BrokerUrl = Annotated[
    str,
    option(
        "log:NAME (embedded, in --home), kafka://HOST:PORT, nats://, redis://, pulsar://; "
        "${NAME} is replaced by an environment variable.",
        "--broker",
        envvar="HEADRACE_BROKER",
        metavar="URL",
        shown=False,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortForm:
    """Options of a stream without a file."""

    model: Annotated[str, option("A model file, or NAME[:VERSION].")] = ""
    endpoint: Annotated[str, option("Endpoint of the system in --home, instead of a model.")] = ""
    broker: BrokerUrl = ""
    sources: Annotated[
        list[str] | None, option("Topic to read; may be repeated.", "--from", metavar="TOPIC")
    ] = None
    sink: Annotated[str, option("Topic for answers.", "--to", metavar="TOPIC")] = ""
    name: Annotated[str, option("Stream name.", shown="the model's name")] = ""
    exactly_once: Annotated[
        bool, option("Exactly-once: a crash repeats no answer.", "--exactly-once")
    ] = False
    allow_code: AllowCode = False


def short_spec(form: ShortForm) -> "SystemSpec":
    """Return the equivalent spec.

    Raises:
        SpecError: The options are not valid; the message lists all mistakes.
        InvalidArgumentError: An option is missing.
    """
    from headrace.core.spec.parse import parse_spec  # noqa: PLC0415  # loads pydantic

    missing = [
        option
        for option, value in (
            ("--model or --endpoint", form.model or form.endpoint),
            ("--broker", form.broker),
            ("--from", form.sources),
            ("--to", form.sink),
        )
        if not value
    ]
    if missing:
        message = f"a stream without a file (-f) also needs {', '.join(missing)}"
        raise InvalidArgumentError(message)
    path = Path(form.model)
    is_path = "/" in form.model or path.exists()
    model = name_from(path) if is_path else form.model.partition(":")[0]
    stream: dict[str, Any] = {
        "name": form.name or form.endpoint or model,
        "source": {"broker": form.broker, "topics": list(form.sources or ())},
        "sink": {"topic": form.sink},
    }
    document: dict[str, Any] = {"version": 1, "streams": [stream]}
    if form.model:
        stream["model"] = form.model
    if form.endpoint:
        stream["endpoint"] = form.endpoint
        # It is the running system's model; here only its name counts.
        document["endpoints"] = [{"name": form.endpoint, "model": "running"}]
    if form.exactly_once:
        stream["delivery"] = "exactly_once"
    if form.allow_code:
        stream["allow_code"] = True
    return parse_spec(document, base_dir=Path.cwd(), secrets_in=document)


def chosen(spec: "SystemSpec", names: list[str], *, location: str) -> "list[StreamSpec]":
    """Return the streams of these names; all without names.

    Raises:
        NotFoundError: A stream does not exist.
    """
    if not spec.streams:
        raise NotFoundError(f"{location} has no 'streams'")
    by_name = {stream.name: stream for stream in spec.streams}
    for name in names:
        if name not in by_name:
            raise NotFoundError(
                f"{location} has no stream '{name[:200]}'; it has: {', '.join(by_name)}"
            )
    return [by_name[name] for name in names] if names else list(spec.streams)


def find_stream(name: str, *, file: Path | None, plane: ControlPlaneOptions) -> "StreamSpec":
    """Return the stream of this name: in `file`, else the system, else `headrace.yaml`.

    Raises:
        NotFoundError: The stream does not exist.
        HeadraceError: The file is not valid, or the running system does not respond.
    """
    from headrace.cli.base.spec_file import read_spec  # noqa: PLC0415  # as above
    from headrace.core.spec.parse import parse_spec  # noqa: PLC0415  # loads pydantic

    target = plane.target()
    if file is None and (target.is_remote or target.is_running()):
        document = target.management().get("/api/v1/spec")["spec"]
        spec, location = parse_spec(document or {"version": 1}, in_force=document), "what runs"
    elif file is not None or SPEC_FILE.is_file():
        spec, location = read_spec(file or SPEC_FILE), str(file or SPEC_FILE)
    else:
        message = (
            f"no system runs in {plane.home}, and there is no {SPEC_FILE} here: pass the spec "
            "file with -f"
        )
        raise NotFoundError(message)
    return chosen(spec, [name], location=location)[0]


def open_broker_of(url: str, home: Path) -> "Broker":
    """Return the broker of a URL that may refer to variables.

    Raises:
        HeadraceError: The broker cannot be used; the message contains the reason.
    """
    from headrace.core.variables import url_filled_in  # noqa: PLC0415  # as above
    from headrace.streaming.brokers import open_broker  # noqa: PLC0415  # only here

    if not url:
        raise InvalidArgumentError("pass a broker: --broker log:demo, or kafka://HOST:PORT")
    return open_broker(url_filled_in(url, description="the broker's URL"), home=home.absolute())


def _workers(stream: Mapping[str, Any]) -> str:
    bounds = ""
    if stream["min_workers"] != stream["max_workers"]:
        bounds = f" of {stream['min_workers']}-{stream['max_workers']}"
    return f"{stream['ready']}/{stream['workers']}{bounds}"


STREAM_COLUMNS: Final[dict[str, Column]] = {
    "stream": "name",
    "state": "state",
    "workers": _workers,
    "rate/s": lambda stream: f"{stream['rate']:,.0f}",
    "lag": lambda stream: number_text(stream["lag_records"]),
    "oldest": lambda stream: duration_text(stream["lag_s"]),
    "answered": lambda stream: number_text(stream["answered"]),
    "dead": lambda stream: number_text(stream["dead_letters"]),
    "by": "model",
}
MEMBER_COLUMNS: Final[dict[str, Column]] = {
    "worker": "member",
    "state": lambda worker: f"{worker['state']}{', outdated' if worker['outdated'] else ''}",
    "pid": lambda worker: str(worker["pid"] or "-"),
    "restarts": "restarts",
    "partitions": "partitions",
    "rate/s": lambda worker: f"{worker['rate']:,.0f}",
    "lag": lambda worker: number_text(worker["lag_records"]),
    "answered": lambda worker: number_text(worker["answered"]),
}
