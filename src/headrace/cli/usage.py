"""`headrace usage`: tokens of OpenAI's API by day, endpoint and credential."""

from typing import Annotated

from headrace.cli.base.options import ControlPlaneOptions, Json, option
from headrace.cli.base.output import Column, show_document, write


def usage(
    *,
    first: Annotated[str, option("First day, UTC: 2026-11-25.", shown="30 days ago")] = "",
    last: Annotated[str, option("Last day, UTC.", shown="today")] = "",
    as_csv: Annotated[bool, option("Print CSV.", "--csv")] = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show tokens of OpenAI's API by day, endpoint, version and credential, as servers count them.

    `input` includes `cached`, `output` includes `reasoning`. `unknown` counts responses whose
    tokens are not known.

    For example:

        headrace usage

        headrace usage --first 2026-11-01 --last 2026-11-30 --csv >november.csv
    """
    server = plane.connect()
    if as_csv:
        for line in server.lines("/api/v1/usage", first=first, last=last, format="csv"):
            write(line)
        return
    document = server.get("/api/v1/usage", first=first, last=last)
    columns: dict[str, Column] = {name: name for use in document["usage"][:1] for name in use}
    show_document(document, document["usage"], columns, json=json, empty="no tokens were used")
