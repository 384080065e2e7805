"""`headrace context`: names control planes elsewhere, and chooses one."""

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

app = CommandGroup(help="Name control planes elsewhere, and choose one: add, use, list, rm.")
_Name = Annotated[str, argument("The context's name.", shown=False)]


@app.command()
def add(
    name: _Name,
    url: Annotated[str | None, argument("Its management API.", metavar="URL")] = None,
    *,
    server: Annotated[str | None, option("The same.", metavar="URL")] = None,
    token_file: Annotated[
        Path | None, option("A file with a token for it, which is kept beside the URL.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        option(
            "Who signs its certificate, where that is none of the usual ones.", shown="the system's"
        ),
    ] = None,
    use: Annotated[bool, option("Make it the current one; the first always is.", "--use")] = False,
) -> None:
    """Remember a control plane under a name; a known name gets the new URL.

    For example:

        headrace context add prod https://models.example

        headrace context add gpu-box gpu-box.lan:8080 --use --token-file ann.token
    """
    if (url is None) == (server is None):
        raise typer.BadParameter("name the control plane's URL, once", param_hint="URL")
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
        say("its URL is no https: whoever is on the way can read the token")
    now = "commands go there now" if contexts.current == name else f"`headrace context use {name}`"
    say(f"{name} is {full}; {now}")


@app.command()
def use(name: _Name) -> None:
    """Send commands to a context from now on; `local` means the home on this machine again.

    For example:

        headrace context use prod

        headrace context use local
    """
    path = contexts_file()
    contexts = read_contexts(path).using(name)
    write_contexts(path, contexts)
    say(f"commands go to {contexts.server or 'the home on this machine'}")


@app.command("list")
def list_(*, json: Json = False) -> None:
    """List the contexts; a star marks the current one."""
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
    """Forget a context; nothing happens to the control plane itself."""
    path = contexts_file()
    before = read_contexts(path)
    write_contexts(path, before.without(name))
    ends = "; commands go to the home on this machine" if before.current == name else ""
    say(f"{name} is forgotten{ends}")
