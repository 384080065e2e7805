"""`headrace infer`: ask an endpoint something from the command line."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import DEFAULT_HOME, Home, OutputFormat, Server

if TYPE_CHECKING:
    from headrace.core import InferResponse


def infer(
    endpoint: Annotated[str, typer.Argument(help="The endpoint's name.", show_default=False)],
    *,
    file: Annotated[
        str | None,
        typer.Option(
            "--input", "-i", help="JSON, CSV, .npy or .npz; - reads standard input.", metavar="FILE"
        ),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            "-n",
            min=1,
            help="Send only the first N rows; without a file, make up that many.",
        ),
    ] = None,
    version: Annotated[
        str, typer.Option("--version", help="A version by number, past the traffic split.")
    ] = "",
    output: Annotated[OutputFormat, typer.Option("--output", "-o")] = OutputFormat.TABLE,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="HEADRACE_URL",
            help="Where to send it: http://, grpc:// or unix:/PATH.",
            show_default="the gateway of --server or --home",
        ),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Seconds for everything.")] = 60.0,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Send rows to an endpoint and print what comes back.

    JSON may be a V2 or V1 request, an object of values by input name, or a list of rows. In CSV
    each line is a row; a header that names the inputs assigns the columns. Without a file a made-up
    row is sent, which shows the shapes.

    For example:

        headrace infer digits

        headrace infer digits -i rows.csv --rows 5

        echo '[[5.1, 3.5, 1.4, 0.2]]' | headrace infer iris -i - -o json
    """
    from headrace.cli import running
    from headrace.cli.connection import find_target
    from headrace.cli.output import write_json
    from headrace.cli.read_inputs import Inputs, read_inputs, with_batch_axis
    from headrace.cli.show_outputs import to_document
    from headrace.client import Client
    from headrace.core import ModelNotFoundError, NotFoundError, example_inputs

    target = find_target(server, home)
    with Client(url or running.gateway_url(target), timeout_s=timeout_s) as client:
        try:
            signature = client.signature(endpoint, version)
        except ModelNotFoundError as error:
            known = [] if url or version else running.endpoint_names(target)
            if not known:
                raise
            msg = f"there is no endpoint '{endpoint}'; there are: {', '.join(known)}"
            raise NotFoundError(msg) from error
        if file is None:
            inputs: Inputs = dict(example_inputs(signature, rows=rows or 1))
        else:
            inputs = with_batch_axis(read_inputs(_read(file), signature), signature)
            if rows is not None and signature.batched:
                inputs = {name: value[:rows] for name, value in inputs.items()}
        response = client.infer(endpoint, inputs, version=version)
    if output is OutputFormat.JSON:
        write_json(to_document(response))
    else:
        _show_table(response, batched=signature.batched)


def _read(file: str) -> bytes:
    if file == "-":
        return sys.stdin.buffer.read()
    path = Path(file)
    if not path.is_file():
        msg = f"there is no file '{file}'"
        raise typer.BadParameter(msg, param_hint="--input")
    return path.read_bytes()


def _show_table(response: "InferResponse", *, batched: bool) -> None:
    from headrace.cli.output import say, show, table
    from headrace.cli.show_outputs import to_rows

    columns, lines, hidden = to_rows(response.outputs, batched=batched)
    show(table(lines, *columns))
    if hidden:
        say(f"… and {hidden} more rows; `-o json` prints all")
    version = f" version {response.model_version}" if response.model_version else ""
    say(f"answered by {response.model_name}{version}")
