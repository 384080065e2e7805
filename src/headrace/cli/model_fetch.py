"""`headrace models fetch`: a model onto a host that has no registry, for instance into a pod."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import Json


def fetch(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME:VERSION|sha256:DIGEST", help="Which model.", show_default=False
        ),
    ],
    *,
    artifacts: Annotated[
        str,
        typer.Option(
            "--artifacts",
            envvar="HEADRACE_ARTIFACTS",
            metavar="URL",
            help="Where models are: s3://BUCKET/PREFIX, gs://, az:// or file:///PATH; credentials "
            "come from the environment.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", help="The directory that it is put into.", file_okay=False, show_default="."
        ),
    ] = Path(),
    timeout_s: Annotated[
        float, typer.Option("--timeout-s", min=1.0, help="Seconds that it may take.")
    ] = 600.0,
    json: Json = False,
) -> None:
    """Fetch a model from a shared store and check every byte; no home or registry is needed.

    It appears under its own name in one step, once it is whole. What is there already and is the
    same is not fetched again. Exit status 1 if the store does not have it, or has it damaged; 3 if
    the store does not answer in time.

    For example:

        headrace models fetch fraud:3 --artifacts s3://models/prod --output /models
    """
    import time

    from headrace.cli.home_registry import watched_store
    from headrace.cli.output import say, write_json
    from headrace.core import InvalidArgumentError
    from headrace.core.text import bytes_text
    from headrace.registry.fetch import check_reference, fetch_model
    from headrace.registry.open_store import RETRY_S, check_artifacts_url

    for told, check, text in (
        ("NAME:VERSION", check_reference, reference),
        ("--artifacts", check_artifacts_url, artifacts),
    ):
        try:
            check(text)
        except InvalidArgumentError as error:
            raise typer.BadParameter(str(error), param_hint=told) from None

    # What is asked for last may be tried for eight times that long.
    shared = watched_store(artifacts, retry_s=min(RETRY_S, timeout_s / 8))
    deadline = time.monotonic() + timeout_s
    found = fetch_model(shared, reference, output, deadline=deadline)
    if json:
        write_json(found)
        return
    what = "is there" if found.is_new else "was there already"
    say(f"{found.path} {what} ({bytes_text(found.size_bytes)}, {found.digest})")
