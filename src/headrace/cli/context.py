"""`headrace context`: names for control planes elsewhere, and which one commands go to."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import Json

app = typer.Typer(
    no_args_is_help=True, help="Name control planes elsewhere, and choose one: add, use, list, rm."
)

_Name = Annotated[str, typer.Argument(help="The context's name.", show_default=False)]


@app.command()
def add(
    name: _Name,
    url: Annotated[
        str | None, typer.Argument(metavar="URL", help="Its management API.", show_default=False)
    ] = None,
    *,
    server: Annotated[
        str | None, typer.Option("--server", metavar="URL", help="The same.", show_default=False)
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            help="A file with a token for it, which is kept beside the URL.",
            show_default="none",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file",
            help="Who signs its certificate, where that is none of the usual ones.",
            show_default="the system's",
        ),
    ] = None,
    use: Annotated[
        bool, typer.Option("--use", help="Make it the current one; the first always is.")
    ] = False,
) -> None:
    """Remember a control plane under a name; a known name gets the new URL.

    For example:

        headrace context add prod https://models.example

        headrace context add gpu-box gpu-box.lan:8080 --use --token-file ann.token
    """
    from headrace.cli.client_options import read_token
    from headrace.cli.contexts import ServerAccess, contexts_file, read_contexts, write_contexts
    from headrace.cli.output import say

    if (url is None) == (server is None):
        msg = "name the control plane's URL, once"
        raise typer.BadParameter(msg, param_hint="URL")
    access = ServerAccess(
        token=read_token(token_file) if token_file is not None else "",
        ca_file=ca_file.absolute() if ca_file is not None else None,
    )
    path = contexts_file()
    contexts = read_contexts(path).with_server(name, url or server or "", use=use, access=access)
    write_contexts(path, contexts)
    if access.token and contexts.servers[name].startswith("http://"):
        say("its URL is no https: whoever is on the way can read the token")
    now = "commands go there now" if contexts.current == name else f"`headrace context use {name}`"
    say(f"{name} is {contexts.servers[name]}; {now}")


@app.command()
def use(name: _Name) -> None:
    """Send commands to a context from now on; `local` means the home on this machine again.

    For example:

        headrace context use prod

        headrace context use local
    """
    from headrace.cli.contexts import contexts_file, read_contexts, write_contexts
    from headrace.cli.output import say

    path = contexts_file()
    contexts = read_contexts(path).using(name)
    write_contexts(path, contexts)
    say(f"commands go to {contexts.server or 'the home on this machine'}")


@app.command("list")
def list_(*, json: Json = False) -> None:
    """List the contexts; a star marks the current one."""
    from headrace.cli.contexts import LOCAL, contexts_file, read_contexts
    from headrace.cli.output import show, table, write_json

    contexts = read_contexts(contexts_file())
    if json:
        write_json({"current": contexts.current or LOCAL, "contexts": dict(contexts.servers)})
        return
    everything = {LOCAL: "the home on this machine", **contexts.servers}
    current = contexts.current or LOCAL
    show(
        table(
            (("*" if name == current else "", name, url) for name, url in everything.items()),
            *("", "context", "server"),
        )
    )


@app.command()
def rm(name: _Name) -> None:
    """Forget a context; nothing happens to the control plane itself."""
    from headrace.cli.contexts import contexts_file, read_contexts, write_contexts
    from headrace.cli.output import say

    path = contexts_file()
    before = read_contexts(path)
    write_contexts(path, before.without(name))
    ends = "; commands go to the home on this machine" if before.current == name else ""
    say(f"{name} is forgotten{ends}")
