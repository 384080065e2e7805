"""`headrace infer`: ask an endpoint something from the command line."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.caller import (
    AllowInsecure,
    Cert,
    CertKey,
    Key,
    Token,
    ca_file_option,
    certificate_of,
    read_secret,
)
from headrace.cli.options import DEFAULT_HOME, NULLS_OPTION, Home, OutputFormat, Server
from headrace.core import Nulls

if TYPE_CHECKING:
    from headrace.core import InferResponse

_HOW = (
    "; --key (or HEADRACE_API_KEY), --token (or HEADRACE_INFER_TOKEN) or --cert show it, and "
    "`headrace keys create` makes a key"
)


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
    nulls: Annotated[Nulls, NULLS_OPTION] = Nulls.NAN,
    output: Annotated[OutputFormat, typer.Option("--output", "-o")] = OutputFormat.TABLE,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            envvar="HEADRACE_URL",
            help="Where to send it: http://, https://, grpc://, grpcs:// or unix:/PATH.",
            show_default="the gateway of --server or --home",
        ),
    ] = None,
    key: Key = None,
    token: Token = None,
    ca_file: Annotated[Path | None, ca_file_option("what --home knows, else the machine's")] = None,
    cert: Cert = None,
    cert_key: CertKey = None,
    allow_insecure: AllowInsecure = False,
    timeout_s: Annotated[float, typer.Option("--timeout-s", help="Seconds for everything.")] = 60.0,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Send rows to an endpoint and print what comes back.

    JSON may be a V2 or V1 request, an object of values by input name, or a list of rows. In CSV
    each line is a row; a header that names the inputs assigns the columns. Without a file a made-up
    row is sent, which shows the shapes. More rows than a request may have go in several requests.

    For example:

        headrace infer digits

        headrace infer digits -i rows.csv --rows 5

        headrace infer digits --url https://models.example --key @key.txt --ca-file ca.pem

        echo '[[5.1, 3.5, 1.4, 0.2]]' | headrace infer iris -i - -o json
    """
    from headrace.cli import running
    from headrace.cli.connection import find_target
    from headrace.cli.output import write_json
    from headrace.cli.read_inputs import (
        Inputs,
        read_file,
        read_inputs,
        refuse_nulls,
        with_batch_axis,
    )
    from headrace.cli.show_outputs import to_document
    from headrace.client import Client
    from headrace.core import (
        ModelNotFoundError,
        NotFoundError,
        UnauthenticatedError,
        example_inputs,
    )

    target = find_target(server, home)
    gateway = running.Gateway(url=url) if url else running.gateway(target)
    certificate = certificate_of(cert, cert_key)
    client = Client(
        gateway.url,
        timeout_s=timeout_s,
        api_key=read_secret(key, "--key"),
        token=read_secret(token, "--token"),
        ca_file=ca_file or gateway.ca_file,
        server_name="" if ca_file else gateway.server_name,
        client_certificate=certificate,
        allow_insecure=allow_insecure,
    )
    with client:
        try:
            signature = client.signature(endpoint, version)
        except ModelNotFoundError as error:
            known = [] if url or version else running.endpoint_names(target)
            if not known:
                raise
            msg = f"there is no endpoint '{endpoint}'; there are: {', '.join(known)}"
            raise NotFoundError(msg) from error
        except UnauthenticatedError as error:
            if key or token or cert:
                raise
            raise UnauthenticatedError(f"{error}{_HOW}") from error
        if file is None:
            inputs: Inputs = dict(example_inputs(signature, rows=rows or 1))
        else:
            inputs = with_batch_axis(read_inputs(read_file(file), signature), signature)
            if nulls is Nulls.ERROR:
                refuse_nulls(inputs, signature)
            if rows is not None and signature.batched:
                inputs = {name: value[:rows] for name, value in inputs.items()}
        response = client.infer(endpoint, inputs, version=version)
    if output is OutputFormat.JSON:
        write_json(to_document(response))
    else:
        _show_table(response, batched=signature.batched)


def _show_table(response: "InferResponse", *, batched: bool) -> None:
    from headrace.cli.output import say, show, table
    from headrace.cli.show_outputs import to_rows

    columns, lines, hidden = to_rows(response.outputs, batched=batched)
    show(table(lines, *columns))
    if hidden:
        say(f"… and {hidden} more rows; `-o json` prints all")
    version = f" version {response.model_version}" if response.model_version else ""
    say(f"answered by {response.model_name}{version}")
