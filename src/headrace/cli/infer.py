"""`headrace infer`: request to an endpoint from the command line.

Credentials are for a gateway or a replica, unlike those of `client_options`, which are for a
control plane.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from headrace.cli.base.options import (
    NULLS_OPTION,
    CallerOptions,
    ControlPlaneOptions,
    EndpointName,
    OutputFormat,
    option,
    setting,
)
from headrace.cli.base.output import say, show, table, write_json
from headrace.client import Client
from headrace.core import (
    Array,
    InferResponse,
    ModelNotFoundError,
    NotFoundError,
    NullPolicy,
    datatype_of,
    example_inputs,
)
from headrace.protocol.values import spelled

_SHOWN_ROWS: Final = 20
_SHOWN_VALUES: Final = 6


def to_document(response: InferResponse) -> dict[str, Any]:
    """Return the response as a V2 response in JSON, as from a server; NaN becomes null."""
    document: dict[str, Any] = {"model_name": response.model_name}
    if response.model_version:
        document["model_version"] = response.model_version
    if response.id:
        document["id"] = response.id
    document["outputs"] = [
        {
            "name": name,
            "datatype": str(datatype_of(array.dtype)),
            "shape": list(array.shape),
            "data": [
                _text(value) if isinstance(value, bytes) else spelled(value)
                for value in array.reshape(-1).tolist()
            ],
        }
        for name, array in response.outputs.items()
    ]
    return document


def to_rows(
    outputs: Mapping[str, Array], *, batched: bool
) -> tuple[list[str], list[list[str]], int]:
    """Return column names, a line per row of the batch, and the number of omitted rows."""
    import numpy as np

    arrays = dict(outputs) if batched else {name: a[np.newaxis] for name, a in outputs.items()}
    rows = max((len(array) for array in arrays.values()), default=0)
    shown = min(rows, _SHOWN_ROWS)
    lines = [
        [str(i), *(_value(array[i]) if i < len(array) else "" for array in arrays.values())]
        for i in range(shown)
    ]
    return ["row", *arrays], lines, rows - shown


def _value(cell: Any) -> str:  # noqa: ANN401  # a scalar or an array
    import numpy as np

    array = np.asarray(cell)
    if array.ndim == 0:
        return _scalar(array.item())
    flat = array.reshape(-1)
    texts = [_scalar(value) for value in flat[:_SHOWN_VALUES].tolist()]
    if flat.size > _SHOWN_VALUES:
        shape = "x".join(map(str, array.shape))
        texts.append(f"… ({shape})")
    text = "  ".join(texts)
    if flat.size > 1 and array.dtype.kind == "f" and array.ndim == 1:
        text += f"   largest: {int(np.argmax(flat))}"
    return text


def _scalar(value: object) -> str:
    if isinstance(value, bytes):
        return _text(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")


def infer(
    endpoint: EndpointName,
    *,
    file: Annotated[
        str | None,
        option(
            "Input file: JSON, CSV, .npy or .npz; - reads standard input.",
            "--input",
            "-i",
            metavar="FILE",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        option(
            "Send only the first N rows; without a file, the number of made-up rows.",
            "--rows",
            "-n",
            min=1,
        ),
    ] = None,
    version: Annotated[str, option("Version number; bypasses the traffic split.")] = "",
    nulls: Annotated[NullPolicy, NULLS_OPTION] = NullPolicy.NAN,
    output: Annotated[OutputFormat, typer.Option("--output", "-o")] = OutputFormat.TABLE,
    url: Annotated[
        str | None,
        setting(
            "Target: http://, https://, grpc://, grpcs:// or unix:/PATH.",
            shown="the gateway of --server or --home",
        ),
    ] = None,
    caller: CallerOptions,
    timeout_s: Annotated[float, option("Total timeout in seconds.")] = 60.0,
    plane: ControlPlaneOptions,
) -> None:
    """Send rows to an endpoint and print the response.

    JSON input is a V2 or V1 request, an object of values by input name, or a list of rows. In CSV
    each line is a row; a header with input names assigns the columns. Without a file, a generated
    row is sent, which shows the shapes. Rows beyond the request limit are sent in several requests.

    For example:

        headrace infer digits

        headrace infer digits -i rows.csv --rows 5

        headrace infer digits --url https://models.example --key @key.txt --ca-file ca.pem

        echo '[[5.1, 3.5, 1.4, 0.2]]' | headrace infer iris -i - -o json
    """
    from headrace.cli.base import connection
    from headrace.cli.base.read_inputs import (
        Inputs,
        read_file,
        read_inputs,
        refuse_nulls,
        with_batch_axis,
    )

    target = plane.target()
    gateway = connection.GatewayAddress(url=url) if url else connection.gateway(target)
    client = Client(
        gateway.url,
        timeout_s=timeout_s,
        api_key=caller.secret("--key"),
        token=caller.secret("--token"),
        ca_file=caller.ca_file or gateway.ca_file,
        server_name="" if caller.ca_file else gateway.server_name,
        client_certificate=caller.certificate(),
        allow_insecure=caller.allow_insecure,
    )
    with client, caller.explained():
        try:
            signature = client.signature(endpoint, version)
        except ModelNotFoundError as error:
            endpoints = [] if url else target.endpoint_names()
            raise _not_found(error, endpoints) from error
        if file is None:
            inputs: Inputs = dict(example_inputs(signature, rows=rows or 1))
        else:
            inputs = with_batch_axis(read_inputs(read_file(file), signature), signature)
            if nulls is NullPolicy.ERROR:
                refuse_nulls(inputs, signature)
            if rows is not None and signature.batched:
                inputs = {name: value[:rows] for name, value in inputs.items()}
        response = client.infer(endpoint, inputs, version=version)
    if output is OutputFormat.JSON:
        write_json(to_document(response))
        return
    columns, lines, hidden = to_rows(response.outputs, batched=signature.batched)
    show(table(lines, *columns))
    if hidden:
        say(f"… and {hidden} more rows; `-o json` prints all")
    version = f" version {response.model_version}" if response.model_version else ""
    say(f"answered by {response.model_name}{version}")


def _not_found(error: ModelNotFoundError, endpoints: list[str]) -> NotFoundError:
    """Return the error with what exists instead; `endpoints` is empty if unknown."""
    if not endpoints:
        return error
    if error.version and error.name in endpoints:
        msg = f"endpoint '{error.name}' serves no version {error.version}; see `headrace status`"
        return NotFoundError(msg)
    return NotFoundError(f"no endpoint '{error.name}'; there are: {', '.join(endpoints)}")
