"""`headrace context`: names control planes elsewhere, and chooses one."""

import os
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.base.contexts import (
    LOCAL,
    ContextCredentials,
    contexts_file,
    read_contexts,
    read_token,
    write_contexts,
)
from headrace.cli.base.options import CommandGroup, Json, argument, option
from headrace.cli.base.output import Column, say, show_document

app = CommandGroup(help="Named control planes: add, use, list, remove.")
_Name = Annotated[str, argument("Context name.", shown=False)]


@app.command()
def add(
    name: _Name,
    url: Annotated[str | None, argument("URL of the management API.", metavar="URL")] = None,
    *,
    server: Annotated[str | None, option("The same.", metavar="URL")] = None,
    token_file: Annotated[
        Path | None, option("File with an access token, stored with the context.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        option(
            "CA certificates (PEM) that verify the control plane, if no public CA signed its "
            "certificate.",
            shown="the system's CA certificates",
        ),
    ] = None,
    use: Annotated[
        bool, option("Make it the current context; the first context always is.", "--use")
    ] = False,
) -> None:
    """Add a named control plane, or change the URL of an existing context.

    For example:

        headrace context add prod https://models.example

        headrace context add gpu-box gpu-box.lan:8080 --use --token-file ann.token
    """
    if (url is None) == (server is None):
        raise typer.BadParameter("pass the control plane's URL exactly once", param_hint="URL")
    access = None
    if token_file is not None or ca_file is not None:
        access = ContextCredentials(
            token="" if token_file is None else read_token(token_file),
            ca_file="" if ca_file is None else str(ca_file.absolute()),
        )
    path = contexts_file()
    contexts = read_contexts(path).with_server(name, url or server or "", use=use, access=access)
    write_contexts(path, contexts)
    full = contexts.contexts[name].server
    if access is not None and access.token and full.startswith("http://"):
        say("its URL is not https: the token is sent unencrypted")
    now = _effect("this context") if contexts.current == name else f"`headrace context use {name}`"
    say(f"{name} is {full}; {now}")


@app.command()
def use(name: _Name) -> None:
    """Select the context for all commands; `local` selects the home on this machine.

    For example:

        headrace context use prod

        headrace context use local
    """
    path = contexts_file()
    contexts = read_contexts(path).using(name)
    write_contexts(path, contexts)
    say(_effect(contexts.server or "the home on this machine"))


def _effect(selected: str) -> str:
    """Return what commands use now that `selected` is the current context."""
    set_ = next((name for name in ("HEADRACE_SERVER", "HEADRACE_HOME") if os.environ.get(name)), "")
    if set_:
        return f"{set_} is set and takes precedence: unset it, and commands use {selected}"
    return f"commands now use {selected}"


@app.command("list")
def list_(*, json: Json = False) -> None:
    """List contexts; an asterisk marks the current one."""
    contexts = read_contexts(contexts_file())
    current = contexts.current or LOCAL
    servers = {name: context.server for name, context in contexts.contexts.items()}
    columns: dict[str, Column] = {
        "": lambda row: "*" if row[0] == current else "",
        "context": lambda row: row[0],
        "server": lambda row: row[1],
    }
    rows = [(LOCAL, "the home on this machine"), *servers.items()]
    show_document({"current": current, "contexts": servers}, rows, columns, json=json)


@app.command()
def rm(name: _Name) -> None:
    """Remove a context; the control plane itself is not changed."""
    path = contexts_file()
    before = read_contexts(path)
    write_contexts(path, before.without(name))
    ends = "; commands now use the home on this machine" if before.current == name else ""
    say(f"{name} removed{ends}")
