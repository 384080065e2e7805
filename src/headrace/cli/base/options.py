"""Options that several commands share, and their values."""

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, get_args, get_type_hints

import typer
from typer.core import TyperGroup
from typer.models import ArgumentInfo, OptionInfo

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.core import InvalidArgumentError, UnauthenticatedError
from headrace.core.text import duration_s

if TYPE_CHECKING:
    from headrace.cli.base.connection import CommandTarget
    from headrace.cli.base.management import Management


class LogFormat(StrEnum):
    """Format of log lines."""

    TEXT = "text"
    JSON = "json"


class OutputFormat(StrEnum):
    """Format of a response."""

    TABLE = "table"
    JSON = "json"


def option(text: str, *names: str, shown: str | bool = True, **more: Any) -> OptionInfo:  # noqa: ANN401  # typer's own arguments
    """Return an option.

    Args:
        text: Help text.
        names: Names of the option; empty for the parameter's name.
        shown: The default as the help shows it, if that is not the value.
        more: Other arguments of `typer.Option`.
    """
    info: OptionInfo = typer.Option(*names, help=text, show_default=shown, **more)
    return info


def argument(text: str, *, shown: str | bool = True, **more: Any) -> ArgumentInfo:  # noqa: ANN401  # as above
    """Return an argument; parameters as of `option`."""
    info: ArgumentInfo = typer.Argument(help=text, show_default=shown, **more)
    return info


def file_option(text: str, *names: str, **more: Any) -> OptionInfo:  # noqa: ANN401  # as above
    """Return an option that takes a file which is there."""
    return option(text, *names, exists=True, dir_okay=False, **more)


_BY_NAME: Final = "HEADRACE_*"
"""Placeholder for the environment variable that is named like the parameter."""


def setting(text: str, *names: str, shown: str = "", **more: Any) -> OptionInfo:  # noqa: ANN401  # as above
    """Return an option that an environment variable, `HEADRACE_` and its name, sets, too.

    Args:
        shown: The default as the help shows it; empty shows the value.
    """
    return option(text, *names, shown=shown or True, **{"envvar": _BY_NAME, **more})


def _home(context: typer.Context, home: Path) -> Path:
    """Return `DEFAULT_HOME` without an explicit home: only then the current context applies."""
    return DEFAULT_HOME if _source(context, "home") == "DEFAULT" else home


def _server(context: typer.Context, server: str | None) -> str | None:
    """Return the server; None if only the environment names one and the command line a home."""
    is_overruled = _source(context, "server") == "ENVIRONMENT"
    return None if is_overruled and _source(context, "home") == "COMMANDLINE" else server


def _source(context: typer.Context, name: str) -> str:
    source = context.get_parameter_source(name)
    return "" if source is None else source.name


def _home_option(*, readable: bool) -> OptionInfo:
    option: OptionInfo = typer.Option(
        "--home",
        envvar="HEADRACE_HOME",
        help="Directory for models, state, sockets and logs.",
        file_okay=False,
        readable=readable,
        show_default="./.headrace",
        callback=_home,
    )
    return option


Home = Annotated[Path, _home_option(readable=True)]
UnreadHome = Annotated[Path, _home_option(readable=False)]
"""Home for commands that work without it: a container's other user cannot read the image's own."""
Server = Annotated[
    str | None,
    option(
        "URL of the control plane's management API, or `local`.",
        "--server",
        envvar="HEADRACE_SERVER",
        metavar="URL",
        shown="the current context, else the system in --home",
        callback=_server,
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlaneOptions:
    """Options that name the control plane that a command talks to."""

    server: Server = None
    home: Home = DEFAULT_HOME

    def target(self) -> "CommandTarget":
        """Return the control plane: `--server`, the current context's, or that of `--home`."""
        from headrace.cli.base.connection import find_target  # noqa: PLC0415  # it loads headrace.control

        return find_target(self.server, self.home)

    def connect(self) -> "Management":
        """Return its management API.

        Raises:
            UnavailableError: No system runs on the home.
        """
        return self.target().management()


EndpointName = Annotated[str, argument("Endpoint name.", shown=False)]
OneEndpoint = Annotated[str, argument("Only this endpoint.", shown="all")]
StreamName = Annotated[str, argument("Stream name.", shown=False)]
SpecArgument = Annotated[
    Path | None,
    argument("The spec file.", shown=False, metavar="FILE", exists=True, dir_okay=False),
]
SpecFile = Annotated[Path | None, file_option("The spec file, instead of FILE.", "--file", "-f")]
SpecOrRunning = Annotated[
    Path | None,
    file_option(
        "The spec file that defines it.",
        "--file",
        "-f",
        shown="the running system, else headrace.yaml",
    ),
]
WaitS = Annotated[float, option("Timeout of --wait in seconds.", min=0.1)]
Follow = Annotated[bool, option("Keep printing until Ctrl-C.", "--follow", "-f")]
Runtime = Annotated[str, option("Runtime of the model.", shown="detected")]
Profiled = Annotated[
    str, option("A model that was measured by `headrace profile`: a path or NAME[:VERSION].")
]
Json = Annotated[bool, option("Print JSON to standard output.", "--json")]
Yes = Annotated[
    bool,
    option(
        "Confirm that endpoints and streams that the spec does not contain are removed.",
        "--yes",
        "-y",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerOptions:
    """Authentication and TLS options of calls to a gateway or a replica."""

    key: Annotated[
        str | None,
        option(
            "API key; @FILE reads it from a file, which hides it from process lists.",
            envvar="HEADRACE_API_KEY",
            shown="none",
        ),
    ] = None
    token: Annotated[
        str | None,
        option(
            "Bearer token (JWT); @FILE reads it from a file.",
            envvar="HEADRACE_INFER_TOKEN",
            shown="none",
        ),
    ] = None
    ca_file: Annotated[
        Path | None,
        setting(
            "CA certificates (PEM) that verify the server.", shown="the system's CA certificates"
        ),
    ] = None
    cert: Annotated[
        Path | None,
        option("Client certificate (PEM).", envvar="HEADRACE_CLIENT_CERT", shown="none"),
    ] = None
    cert_key: Annotated[
        Path | None,
        option(
            "Private key of the client certificate (PEM).",
            envvar="HEADRACE_CLIENT_CERT_KEY",
            shown="none",
        ),
    ] = None
    allow_insecure: Annotated[
        bool,
        option(
            "Allow sending credentials to another machine without encryption.", "--allow-insecure"
        ),
    ] = False

    def secret(self, flag: str) -> str | None:
        """Return the key or the token, read from a file if it is `@FILE`."""
        credential = self.key if flag == "--key" else self.token
        if credential is None or not credential.startswith("@"):
            return credential
        path = Path(credential[1:])
        if not path.is_file():
            raise typer.BadParameter(f"no file '{path}'", param_hint=flag)
        return path.read_text().strip()

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Add the remedy to the error of a caller who is not authenticated."""
        try:
            yield
        except UnauthenticatedError as error:
            if self.key:
                remedy = "`headrace keys list` shows the valid keys"
            elif self.token or self.cert:
                raise
            else:
                remedy = (
                    "authenticate with --key (or HEADRACE_API_KEY), --token (or "
                    "HEADRACE_INFER_TOKEN) or --cert; `headrace keys create` creates an API key"
                )
            raise UnauthenticatedError(f"{error}; {remedy}") from error

    def certificate(self) -> tuple[Path, Path] | None:
        """Return the files of the certificate and its key, if both were given."""
        if self.cert is None and self.cert_key is None:
            return None
        if self.cert is None or self.cert_key is None:
            hint = "--cert" if self.cert is None else "--cert-key"
            raise typer.BadParameter("--cert and --cert-key go together", param_hint=hint)
        return self.cert, self.cert_key


def name_from(path: Path) -> str:
    """Return a name from a file's or directory's: `My model.onnx` becomes `My-model`.

    For generic file names, such as `model.onnx`, the directory's name is used.
    """
    full = path.absolute()
    stem = full.name if full.is_dir() else full.stem
    parent = full.parent
    while stem in {"", "model"} or stem.isdigit():
        if not parent.name:
            break
        stem, parent = parent.name, parent.parent
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-._")[:128] or "model"


ROWS_INDEPENDENT_HELP = (
    "Declare that the answers of a batch's rows are independent, which allows batching "
    "for models where this cannot be proven."
)
AllowCode = Annotated[
    bool,
    option(
        "Allow model formats that execute code, such as Python models.",
        "--allow-code",
        envvar="HEADRACE_ALLOW_CODE",
    ),
]
RowsIndependent = Annotated[bool, option(ROWS_INDEPENDENT_HELP, "--rows-independent")]
NULLS_OPTION: OptionInfo = option(
    "Meaning of null in float inputs: NaN (a missing value) or an error.", "--nulls"
)
Tuned = Annotated[
    bool,
    option(
        "Complete batching and replica settings from the models' profiles, which `headrace "
        "profile` creates.",
        "--tuned",
    ),
]
StateUrl = Annotated[
    str,
    option(
        "Database of the desired state: sqlite:///PATH or postgresql://USER@HOST/NAME; the "
        "password as ${NAME} from the environment, or the whole URL as file:/PATH.",
        "--state-url",
        envvar="HEADRACE_STATE_URL",
        metavar="URL",
        shown="state.db in --home",
    ),
]
Artifacts = Annotated[
    str,
    option(
        "Shared artifact store of several homes: s3://BUCKET/PREFIX, gs://, az:// or "
        "file:///PATH; credentials come from the environment.",
        "--artifacts",
        envvar="HEADRACE_ARTIFACTS",
        metavar="URL",
        shown="models are stored in --home only",
    ),
]
LogFormatOption = Annotated[
    LogFormat | None,
    option("Log format.", "--log-format", envvar="HEADRACE_LOG_FORMAT", shown="text"),
]
LogLevel = Annotated[
    str,
    option(
        "Log level: debug, info, warning or error.",
        "--log-level",
        envvar="HEADRACE_LOG_LEVEL",
        shown="info",
    ),
]
Host = Annotated[
    str | None,
    option(
        "Address to listen on; 0.0.0.0 accepts connections from other machines.",
        "--host",
        envvar="HEADRACE_HOST",
        shown="127.0.0.1",
    ),
]


def check_log_level(level: str) -> str:
    """Return `level` as `logging` calls it."""
    name = level.upper()
    if name not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
        msg = f"'{level}' is not a log level; use debug, info, warning or error"
        raise typer.BadParameter(msg, param_hint="--log-level")
    return name


def expanded(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` as typer reads it: fields of its option structs are its parameters.

    An option struct is a dataclass whose fields are annotated as typer's options are.
    """
    signature = inspect.signature(function, eval_str=True)
    structs: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name not in structs:
            parameters.append(parameter)
            continue
        hints = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            parameter.replace(
                name=field.name,
                default=parameter.empty if field.default is MISSING else field.default,
                annotation=hints[field.name],
            )
            for field in fields(parameter.annotation)
        ]

    for parameter in parameters:
        for info in get_args(parameter.annotation)[1:]:
            if isinstance(info, OptionInfo) and info.envvar == _BY_NAME:
                info.envvar = f"HEADRACE_{parameter.name.upper()}"
    if not structs:
        return function

    @functools.wraps(function)
    def command(**options: Any) -> Any:  # noqa: ANN401  # options of several types
        for name, kind in structs.items():
            options[name] = kind(**{field.name: options.pop(field.name) for field in fields(kind)})
        return function(**options)

    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # inspect looks for it
    command.__annotations__ = {option.name: option.annotation for option in parameters}
    return command


class CommandGroup(typer.Typer):
    """Group of commands that may declare options in structs; alone it prints its help."""

    def __init__(self, **settings: Any) -> None:  # noqa: ANN401  # typer's own
        super().__init__(**{"no_args_is_help": True, "rich_markup_mode": None, **settings})

    def command(self, *arguments: Any, **settings: Any) -> Callable[..., Any]:  # noqa: ANN401  # typer's own
        """Return the decorator that adds a command."""
        return _expanding(super().command(*arguments, **settings))

    def callback(self, *arguments: Any, **settings: Any) -> Callable[..., Any]:  # noqa: ANN401  # typer's own
        """Return the decorator that adds the function called before a command."""
        return _expanding(super().callback(*arguments, **settings))


def _expanding(add: Callable[..., object]) -> Callable[..., Any]:
    """Return the decorator that registers the expanded function and returns the original."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        add(expanded(function))
        return function

    return register


class ShowByDefault(TyperGroup):
    """Group whose default command is `show`: `headrace drift fraud`."""

    def parse_args(
        self,
        ctx: typer.Context,  # type: ignore[override]  # typer keeps the wider type to itself
        args: list[str],
    ) -> list[str]:
        """Return the arguments, with `show` before a first word that is no command."""
        asks_help = args[:1] in [[name] for name in ctx.help_option_names]
        is_named = self.no_args_is_help if not args else args[0] in self.commands or asks_help
        return super().parse_args(ctx, args if is_named else ["show", *args])


def one_spec_file(argument: Path | None, option: Path | None) -> Path:
    """Return the spec file of a command that takes it as an argument or as an option."""
    path = argument or option
    if path is None or (argument is not None and option is not None):
        raise typer.BadParameter("name one spec file, such as headrace.yaml", param_hint="FILE")
    return path


_MAX_NUMBERS: Final = 16
_AGO: Final = "smhdw"
_SHOWN: Final = 60
_MAX_NUMBER: Final = 1 << 20


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """Return integers from 1 on, in the written order; empty if `text` is empty.

    Raises:
        BadParameter: The text is not a list of whole numbers.
    """
    if not text:
        return ()
    try:
        result = tuple(int(part) for part in text.split(","))
    except ValueError:
        msg = f"'{text}' is not a list of whole numbers such as 1,2,4"
        raise typer.BadParameter(msg, param_hint=flag) from None
    if not all(1 <= number <= _MAX_NUMBER for number in result) or len(result) > _MAX_NUMBERS:
        msg = f"'{text}': up to {_MAX_NUMBERS} numbers from 1 to {_MAX_NUMBER}"
        raise typer.BadParameter(msg, param_hint=flag)
    return tuple(dict.fromkeys(result))


def seconds(text: str, flag: str) -> float:
    """Return the seconds of a duration: seconds, or a number with a unit from `us` to `w`.

    Raises:
        BadParameter: The text is not a duration above 0.
    """
    result = duration_s(text)
    if result is None:
        msg = f"'{text}' is not a duration such as 50ms, 60s, 5m, 12h or 30d"
        raise typer.BadParameter(msg, param_hint=flag)
    return result


def parse_share(text: str, flag: str) -> float:
    """Return the ratio of `1%` or `0.01`, the value of `flag`.

    Raises:
        BadParameter: The text is not a ratio between 0 and 1.
    """
    word = text.strip()
    try:
        ratio = float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        msg = f"'{text}' is not a ratio; write 1% or 0.01"
        raise typer.BadParameter(msg, param_hint=flag)
    return ratio


def span_s(text: str, flag: str) -> float | None:
    """Return the seconds of a duration with a unit, such as `30d`; None for `never`.

    Raises:
        BadParameter: The text is not a duration.
    """
    if text == "never":
        return None
    result = None if text[-1:].isdigit() else duration_s(text)
    if result is None:
        msg = f"'{text}' is not a duration; write it as 90s, 15m, 12h, 30d or 8w, or never"
        raise typer.BadParameter(msg, param_hint=flag)
    return result


def moment(text: str, *, now: float) -> float:
    """Return the Unix time of `text`; UTC without a time zone.

    Raises:
        InvalidArgumentError: The text is not a time, or is in the future.
    """
    if text.strip().startswith("-"):
        if text.strip()[1:].rstrip(_AGO) == "0":  # not a duration but the current time
            return now
        ago_s = duration_s(text.strip()[1:])
        if ago_s is not None:
            return now - ago_s
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        message = (
            f"{text[:_SHOWN]!r} is not a time: write it as 2026-11-27T06:00Z, or as -2h "
            "(s, m, h, d or w ago)"
        )
        raise InvalidArgumentError(message) from None
    moment_s = (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
    if moment_s > now:
        raise InvalidArgumentError(f"{text[:_SHOWN]!r} is in the future")
    return moment_s
