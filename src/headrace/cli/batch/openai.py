"""Requests of OpenAI's API through the gateway: `headrace batch openai`, the model of `embed`."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import asyncio
import hashlib
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.base import connection
from headrace.cli.base.options import (
    CallerOptions,
    ControlPlaneOptions,
    Json,
    argument,
    option,
    setting,
)
from headrace.cli.base.output import progress_bar, say, write_json

if TYPE_CHECKING:
    from headrace.cli.batch.commands import EmbedOptions
    from headrace.cli.batch.model import Chosen
    from headrace.client.conversation import Attempts
    from headrace.client.credentials import ConnectionOptions, ServerAddress
    from headrace.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenaiRunOptions:
    """Options of a batch of OpenAI requests."""

    output: Annotated[
        Path,
        option(
            "Output file: one JSON line per request, in the order of the input; written when "
            "every request has a result.",
            "--output",
            "-o",
            dir_okay=False,
        ),
    ]
    error_file: Annotated[
        Path | None,
        option("File for the results of failed requests.", dir_okay=False, shown="the output file"),
    ] = None
    path: Annotated[
        str,
        option(
            "The only path that requests may have as `url`.",
            metavar="/v1/...",
            shown="all of OpenAI's that the gateway serves",
        ),
    ] = ""
    concurrency: Annotated[int, option("Concurrent requests.", min=1, max=256)] = 32
    # Options that the control plane passes to its runs.
    expires_at: Annotated[float | None, typer.Option(hidden=True)] = None
    cancelled: Annotated[bool, typer.Option(hidden=True)] = False
    supervised: Annotated[bool, typer.Option(hidden=True)] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayRunOptions:
    """Options of a run that sends requests of OpenAI's API through a gateway."""

    url: Annotated[
        str | None,
        setting(
            "Gateway: http://, https:// or unix:/PATH.", shown="the gateway of --server or --home"
        ),
    ] = None
    timeout_s: Annotated[float, option("Timeout of a request in seconds.", min=0.001)] = 600.0
    retry_for_s: Annotated[
        float,
        option(
            "Seconds for which a request is retried after a 429 or 503, and for which an "
            "unreachable gateway is called.",
            min=0,
        ),
    ] = 600.0

    def attempts(self) -> "Attempts":
        """Return the attempts of each request."""
        from headrace.client.conversation import Attempts

        return Attempts.of_offline_run(timeout_s=self.timeout_s, retry_for_s=self.retry_for_s)

    def connection(
        self, caller: CallerOptions, target: Callable[[], connection.CommandTarget]
    ) -> "tuple[ServerAddress, ConnectionOptions]":
        """Return the address of the gateway, and the options of connections to it.

        Raises:
            InvalidArgumentError: The address is not one of HTTP, or the credentials cannot be used.
            UnavailableError: No system was started at the target.
        """
        from headrace.client.credentials import connection_options, parse_target, trust_of
        from headrace.core import InvalidArgumentError

        gateway = (
            connection.GatewayAddress(url=self.url) if self.url else connection.gateway(target())
        )
        server = parse_target(gateway.url)
        if server.protocol != "http":
            msg = f"{gateway.url}: OpenAI's API is HTTP; use http:// or https://"
            raise InvalidArgumentError(msg)
        server_name = "" if caller.ca_file else gateway.server_name
        options = connection_options(
            server,
            api_key=caller.secret("--key"),
            token=caller.secret("--token"),
            trust=trust_of(caller.ca_file or gateway.ca_file, caller.certificate(), server_name),
            allow_insecure=caller.allow_insecure,
        )
        return server, options


def openai(
    requests: Annotated[
        Path,
        argument(
            "Requests in OpenAI's batch format (JSON lines).", dir_okay=False, metavar="REQUESTS"
        ),
    ],
    *,
    options: OpenaiRunOptions,
    gateway: GatewayRunOptions,
    caller: CallerOptions,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Send each request of a file in OpenAI's batch format, and write one result per request.

    A request that is refused with 429 or 503 is retried, after the server's `retry-after`. The same
    command resumes an interrupted run, and leaves a complete output as it is.

    Exit status: 0 every request has a result, which may be an error; 1 failed; 2 wrong command
    line; 3 the gateway is not reachable; 130 interrupted.

    For example:

        headrace batch openai requests.jsonl -o results.jsonl --key @key.txt
    """
    from headrace.client.wires import async_transport
    from headrace.core import SystemClock
    from headrace.jobs.openai import OpenaiBatch
    from headrace.jobs.openai_lines import BatchCounts

    if options.supervised:  # the kernel ends it before processes that answer requests
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    server, connections = gateway.connection(caller, plane.target)
    with progress_bar(requests.name, None) as update:

        def on_progress(counts: BatchCounts) -> None:
            done = counts.completed + counts.failed
            failed = f", {counts.failed:,} failed" if counts.failed else ""
            note = f"{done:,} of {counts.total:,}{failed}"
            update(total=counts.total, completed=done, note=note)
            if options.supervised:
                write_json(counts)
                sys.stdout.flush()

        async def run() -> BatchCounts:
            transport = async_transport(server, connections)
            batch = OpenaiBatch(
                input=requests,
                output=options.output,
                error_file=options.error_file,
                path=options.path,
                concurrency=options.concurrency,
                expires_at=options.expires_at,
                is_cancelled=options.cancelled,
                transport=transport,
                clock=SystemClock(),
                attempts=gateway.attempts(),
                on_progress=on_progress,
            )
            task = asyncio.current_task()
            assert task is not None
            # SIGTERM ends the run as Ctrl-C does.
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGTERM, task.cancel)
            if options.supervised:  # standard input ends with the control plane
                loop.add_reader(sys.stdin, task.cancel)
            try:
                return await batch.run()
            finally:
                await transport.aclose()

        try:
            with caller.explained():
                counts = asyncio.run(run())
        except (KeyboardInterrupt, asyncio.CancelledError):
            say("interrupted; results are kept, and the same command continues")
            raise KeyboardInterrupt from None
    if json:
        write_json(counts)
        return
    resumed = f", {counts.resumed:,} of them earlier" if counts.resumed else ""
    say(f"{counts.total:,} requests{resumed}: {options.output}")
    if counts.failed:
        location = options.error_file or options.output
        say(f"{counts.failed:,} of them failed; see {location}")
    if counts.retries:
        say(f"{counts.retries:,} retries")


def open_embeddings(
    options: "EmbedOptions",
    gateway: GatewayRunOptions,
    caller: CallerOptions,
    target: "connection.CommandTarget",
) -> "tuple[Chosen, Scorer]":
    """Return the endpoint of `headrace batch embed` as a model, as the run's record describes it.

    A resumed run needs the same endpoint, and vectors of the same size. The version is not part of
    the description, because the gateway chooses it for each request.
    """
    from headrace.cli.batch.model import Chosen
    from headrace.client.wires import blocking_transport
    from headrace.core import NotFoundError, ReplicaSettings
    from headrace.core.spec.stream_parts import OpenAIPath, StreamOpenAISpec
    from headrace.jobs.messages import JobModel
    from headrace.scoring.endpoint import OpenAIModel, endpoint_scorer

    name, body = options.endpoint, {}
    if options.dimensions is not None:
        body["dimensions"] = options.dimensions
    transport = blocking_transport(*gateway.connection(caller, lambda: target))
    call = StreamOpenAISpec(path=OpenAIPath.EMBEDDINGS, body=body)
    model = OpenAIModel(transport, name, call, gateway.attempts())
    with caller.explained():
        try:
            words = f"{name} {model.fix_size()}"
        except NotFoundError as error:
            msg = f"{error}; `headrace status` lists the endpoints"
            raise NotFoundError(msg) from error
    job_model = JobModel(
        reference=name,
        version="",
        digest=f"sha256:{hashlib.sha256(words.encode()).hexdigest()}",
        runtime="openai",
    )
    settings = ReplicaSettings(model_name=name, model_version="", path="")
    scorer = endpoint_scorer(model, name, max_batch_size=options.texts)
    return Chosen(job_model=job_model, settings=settings), scorer
