"""`headrace up`: from a model file to a running system."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path  # Typer reads annotations
from typing import Annotated

import msgspec
import typer

from headrace.cli.base.options import Json, Tuned, Yes, argument, file_option, option
from headrace.cli.base.output import NOT_READY, say
from headrace.cli.up.flags import StoredFlags
from headrace.cli.up.settings import ControlOptions, GatewayTlsOptions, ModelOptions


def up(
    target: Annotated[
        str | None,
        argument(
            "A model, a directory with a model or a Triton-style repository, NAME[:VERSION] of "
            "the registry, a URI (s3://, hf:// and so on), or a spec file.",
            metavar="MODEL_FILE|MODEL_DIR|NAME[:VERSION]|URI|headrace.yaml",
            shown="./headrace.yaml, else the stored state",
        ),
    ] = None,
    *,
    file: Annotated[
        Path | None, file_option("The spec file; the same as the argument.", "--file", "-f")
    ] = None,
    detach: Annotated[
        bool, option("Return when a test request has succeeded.", "--detach", "-d")
    ] = False,
    model: ModelOptions,
    tls: GatewayTlsOptions,
    allow_code: Annotated[
        bool,
        option(
            "Allow model formats that execute code, such as Python models (`allow_code: true` "
            "for all endpoints).",
            "--allow-code",
        ),
    ] = False,
    tuned: Tuned = False,
    yes: Yes = False,
    wait_s: Annotated[float, option("Timeout of --detach in seconds.", min=0.1)] = 120.0,
    forget_flags: Annotated[
        bool,
        option("Start without the stored flags of earlier starts.", "--forget-flags", hidden=True),
    ] = False,
    json: Json = False,
    options: ControlOptions,
    context: typer.Context,
) -> None:
    """Serve models: start gateway, replicas and control plane, and keep them running.

    A model adds its endpoint, or updates it, and leaves the others. A spec replaces the desired
    state: endpoints that it does not contain are removed, after a question or with --yes.

    In the foreground, prints the addresses and then all logs; Ctrl-C drains and stops. If a system
    already runs in this home, it is changed. SIGTERM ends only the control plane: gateway and
    replicas serve on, the next `up` adopts them with their ports, and `headrace down` stops them.

    The home stores the flags of a start, and the next start uses those that it does not set; the
    running system takes flags only at its start.

    With --detach, exit status 3 means that some endpoints are not ready; each is listed with its
    reason, and the others serve. If no endpoint becomes ready, the system is stopped, with exit
    status 1.

    For example:

        headrace up model.onnx --slo-p99 150ms --max-replicas 4

        headrace up fraud:3 --detach

        headrace up s3://models/fraud/model.onnx --detach

        headrace up headrace.yaml --detach

        headrace up models/ --name fraud --replicas 2 --http-port 9000
    """
    from headrace.cli.base.connection import CommandTarget
    from headrace.cli.base.model_store import model_store
    from headrace.cli.base.sources import with_pushed_models
    from headrace.cli.base.spec_file import confirm_removals
    from headrace.cli.up import start
    from headrace.control import read_control_file

    home = options.home
    if file is not None and target is not None:
        msg = f"names a second target besides '{target}'"
        raise typer.BadParameter(msg, param_hint="--file")
    target = str(file) if target is None and file is not None else target
    document = start.document_for(target, model, home=home, has_state=bool(options.state_url))
    if allow_code:
        if document is None:
            msg = "the stored state is resumed; pass a model or a spec"
            raise typer.BadParameter(msg, param_hint="--allow-code")
        document = start.with_code(document)
    document = document and with_pushed_models(
        document,
        lambda: model_store(CommandTarget(home=home), artifacts=options.artifacts or None),
        home=home,
    )
    if tuned:
        document = start.with_tuning(document, home)
    is_spec = start.names_spec(target)
    running = read_control_file(home)
    stored = StoredFlags(values={}) if forget_flags and running is None else StoredFlags.load(home)
    if running is not None:
        stored.check_running(running, context, options, tls)
        start.change_running(
            running, document, home=home, is_spec=is_spec, yes=yes, wait_s=wait_s, json=json
        )
        return
    if document is not None and is_spec:
        confirm_removals(start.stored_spec(home, options.state_url), document, yes=yes)
    options, tls = stored.applied_to(options, context), stored.applied_to(tls, context)
    flags = stored.updated(context, options, tls)
    settings = msgspec.structs.replace(
        options.settings(document if is_spec else None),
        endpoint=None if is_spec or document is None else document["endpoints"][0],
        tls=tls.settings(),
        copy_logs=not detach,
    )
    if text := stored.text():
        say(f"stored flags of earlier starts: {text}")
    if detach:
        is_ready = start.detach(settings, home=home, flags=flags, wait_s=wait_s, json=json)
        if not is_ready:
            raise typer.Exit(NOT_READY)
    else:
        raise typer.Exit(start.run_here(settings, home, flags))
