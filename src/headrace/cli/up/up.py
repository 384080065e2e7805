"""`headrace up`: from a model file to a running system."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from headrace.cli.base.options import Json, Tuned, argument, option, setting
from headrace.cli.base.output import NOT_READY
from headrace.cli.up.settings import ControlOptions, ModelOptions, tls_settings


def up(
    target: Annotated[
        Path | None,
        argument(
            "A model, a directory with a model or a Triton-style repository, or a spec file.",
            metavar="MODEL_FILE|MODEL_DIR|headrace.yaml",
            shown="./headrace.yaml, else what ran last",
        ),
    ] = None,
    *,
    detach: Annotated[
        bool, option("Return once a real request was answered.", "--detach", "-d")
    ] = False,
    model: ModelOptions,
    tls_cert: Annotated[
        Path | None,
        setting(
            "Encrypt the gateway's ports: its certificate with its chain (PEM).",
            dir_okay=False,
            shown="the spec's gateway.tls",
        ),
    ] = None,
    tls_key: Annotated[
        Path | None, setting("The certificate's private key (PEM, mode 0600).", dir_okay=False)
    ] = None,
    client_ca: Annotated[
        Path | None,
        setting(
            "Take client certificates that these authorities signed (PEM).",
            dir_okay=False,
            hidden=True,
        ),
    ] = None,
    require_client_cert: Annotated[
        bool,
        option(
            "Refuse connections without a client certificate.", "--require-client-cert", hidden=True
        ),
    ] = False,
    allow_code: Annotated[
        bool,
        option(
            "Serve formats that run code of their authors, as Python models do "
            "(`allow_code: true` at every endpoint).",
            "--allow-code",
        ),
    ] = False,
    tuned: Tuned = False,
    wait_s: Annotated[float, option("Seconds that --detach waits for it.", min=0.1)] = 120.0,
    json: Json = False,
    options: ControlOptions,
) -> None:
    """Serve models: start gateway, replicas and control plane, and keep them running.

    In the foreground it prints the addresses, then the log of everything; Ctrl-C drains and stops.
    Where a system already runs on this home, the new spec is applied to it. After a control plane
    that was killed, this one takes over what runs, on the ports that it had.

    With --detach, exit status 3 says that some endpoints are not ready, each named with the reason;
    the others serve. Where none is ready, everything is stopped again, with exit status 1.

    For example:

        headrace up model.onnx --slo-p99 150ms --max-replicas 4

        headrace up headrace.yaml --detach

        headrace up models/ --name fraud --replicas 2 --http-port 9000
    """
    from headrace.cli.up import start
    from headrace.control import read_control_file

    home = options.home
    document = start.document_for(target, model, home=home, has_state=bool(options.state_url))
    if allow_code and document is not None:
        document = start.with_code(document)
    if tuned:
        document = start.with_tuning(document, home)
    running = read_control_file(home)
    if running is not None:
        start.change_running(running, document, home=home, wait_s=wait_s, json=json)
        return
    settings = msgspec.structs.replace(
        options.settings(document),
        tls=tls_settings("--tls", tls_cert, tls_key, client_ca, require_client=require_client_cert),
        copy_logs=not detach,
    )
    if detach:
        if not start.detach(settings, home=home, wait_s=wait_s, json=json):
            raise typer.Exit(NOT_READY)
    else:
        raise typer.Exit(start.run_here(settings, home))
