"""`headrace load`: open-loop load against any server of the V2 protocol."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from headrace.cli.base.load_report import (
    announcement,
    document,
    report,
    steps_document,
    steps_report,
)
from headrace.cli.base.options import CallerOptions, Json, argument, option
from headrace.cli.base.output import FAILED, INTERRUPTED, NOT_READY, OK, say, show, write_json
from headrace.cli.base.read_inputs import read_file, read_inputs, with_batch_axis
from headrace.client.tensors import to_tensors
from headrace.core import (
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    check_inputs,
    datatype_of,
    example_inputs,
)
from headrace.core.text import duration_text
from headrace.load import (
    ArrivalProcess,
    LoadPlan,
    LoadResult,
    LoadTarget,
    ObjectiveVerdict,
    RunTick,
    TargetProbe,
    check_plan,
    open_target,
    parse_objectives,
    run_load,
)
from headrace.load.target import binary_message, json_message

_MAX_BYTES: Final = 512 << 20
_MAX_MESSAGES: Final = 1_000_000
_SHOWN: Final = 4
_LINES: Final = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContents:
    """Options for the content of requests."""

    file: Annotated[
        str | None,
        option(
            "Input file: JSON, CSV, .npy or .npz, as for `headrace infer`; .jsonl has one "
            "request per line, sent in turn. - reads standard input.",
            "--input",
            "-i",
            metavar="FILE",
            shown="made-up inputs",
        ),
    ] = None
    rows: Annotated[
        int | None,
        option(
            "Rows per request. Rows of a file are sent in turn.",
            "--rows",
            "-n",
            min=1,
            max=1_000_000,
            shown="1, or all rows of the file",
        ),
    ] = None
    size: Annotated[
        int,
        option(
            "Size of variable axes of made-up inputs, such as a text length or an image side.",
            min=1,
            max=10_000_000,
        ),
    ] = 1
    binary: Annotated[
        bool, option("Send and request tensors as binary data instead of JSON.", "--binary")
    ] = False


def ready_target(target: LoadTarget, contents: RequestContents) -> tuple[LoadTarget, str]:
    """Return `target` with requests that its server accepted, and their description.

    Raises:
        HeadraceError: The server cannot be reached, has no such model, or refuses the requests.
    """
    with TargetProbe(target) as probe:
        if not target.model:
            target = replace(target, model=probe.only_model())
    with TargetProbe(target) as probe:
        requests = list(tensors_of(probe.signature(), contents, target.model))
        make = binary_message if contents.binary else json_message
        messages, total = [], 0
        for tensors in requests:
            messages.append(make(target.model, target.version, tensors))
            total += len(messages[-1][1])
            if total > _MAX_BYTES or len(messages) > _MAX_MESSAGES:
                msg = (
                    f"the requests exceed {_MAX_BYTES >> 20} MB or {_MAX_MESSAGES:,}: "
                    "give a smaller file, or fewer rows"
                )
                raise InvalidArgumentError(msg)
        probe.check_requests(messages)
    named = [
        f"{name} {datatype_of(array.dtype)} {list(array.shape)}"
        for name, array in requests[0].items()
    ]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    origin = "made up" if contents.file is None else f"of {contents.file}"
    turn = f"{len(messages):,} requests in turn, the first " if len(messages) > 1 else ""
    form = f"{len(messages[0][1]):,} bytes of {'binary' if contents.binary else 'JSON'}"
    words = f"{turn}{', '.join(named[:_SHOWN])}{more}, {origin}, {form}"
    return target.with_messages(messages), words


def tensors_of(
    signature: ModelSignature, contents: RequestContents, model: str
) -> Iterator[Tensors]:
    """Yield the inputs of each request, in turn.

    Raises:
        InvalidArgumentError: The file cannot be read, or does not fit the model.
    """
    if contents.file is None:
        yield dict(example_inputs(signature, rows=contents.rows or 1, variable=contents.size))
        return
    parts = [(0, read_file(contents.file))]
    is_lines = contents.file.endswith(_LINES)
    if is_lines:
        parts = [(i, line) for i, line in enumerate(parts[0][1].splitlines(), 1) if line.strip()]
        if not parts:
            raise InvalidArgumentError(f"'{contents.file}' is empty")
    for i, part in parts:
        try:
            inputs = read_inputs(part, signature)
        except InvalidArgumentError as error:
            location = f"line {i} of '{contents.file}': " if is_lines else ""
            raise InvalidArgumentError(f"{location}{error}") from None
        tensors = to_tensors(with_batch_axis(inputs, signature), signature)
        check_inputs(model, signature, tensors)
        rows = contents.rows
        if rows is None or not signature.batched:
            yield tensors
            continue
        # A smaller remainder is left out, unless it is the only request.
        count = min(len(array) for array in tensors.values())
        for begin in range(0, max(count - rows, 0) + 1, rows):
            yield {name: array[begin : begin + rows] for name, array in tensors.items()}


_CLEAR = "\r\x1b[2K"


@contextmanager
def live() -> Iterator[Callable[[RunTick], None] | None]:
    """Yield the progress display of a terminal, erased at the end; None elsewhere.

    Plain text: rendering a table would delay a thousand requests each time.
    """
    if not sys.stderr.isatty():
        yield None
        return

    def show_tick(tick: RunTick) -> None:
        sys.stderr.write(f"{_CLEAR}{line(tick)}")
        sys.stderr.flush()

    try:
        yield show_tick
    finally:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()


def line(tick: RunTick) -> str:
    """Return a tick as text."""
    left = f"{tick.left_s:.0f} s left" if tick.left_s > 0 else "waiting for answers"
    return (
        f"{tick.sent:,} sent, {tick.in_flight:,} in flight, "
        f"p50 {duration_text(tick.p50_s)}, p99 {duration_text(tick.p99_s)}, "
        f"{tick.failed:,} failed, lag {duration_text(tick.lag_p99_s)}, {left}"
    )


_MAX_STEPS: Final = 50
_BEST_FIRST: Final = (OK, NOT_READY, FAILED)


class ArrivalKind(StrEnum):
    """Distribution of requests over time."""

    POISSON = "poisson"
    CONSTANT = "constant"


def load(
    url: Annotated[
        str,
        argument(
            "http://HOST:PORT or https://, optionally with /v2/models/NAME/infer or "
            "/v2/models/NAME/versions/V/infer, or unix:/PATH."
        ),
    ],
    *,
    rate: Annotated[
        str,
        option(
            "Requests per second. Several rates are tried in turn until an objective is missed.",
            "--rate",
            "-r",
            metavar="RATE,…",
        ),
    ],
    seconds: Annotated[float, option("Duration of the measurement.", "--seconds", "-s")] = 10.0,
    warm_up: Annotated[
        float, option("Warm-up seconds at the same rate, excluded from results.")
    ] = 2.0,
    slo: Annotated[
        list[str] | None,
        option(
            "Objectives: p99=20ms, p99.9=0.2s, error=0.1%; separate several by commas, or "
            "repeat the option.",
            shown="nothing",
        ),
    ] = None,
    arrivals: Annotated[
        ArrivalKind,
        option("Arrival process. poisson: many independent callers. constant: equal intervals."),
    ] = ArrivalKind.POISSON,
    seed: Annotated[int, option("Seed of the arrival process.")] = 1,
    connections: Annotated[
        int,
        option(
            "Maximum number of concurrent connections; a request without a free connection "
            "waits, and its wait counts as latency.",
            "--connections",
            "-c",
        ),
    ] = 1000,
    timeout_s: Annotated[
        float,
        option("Request timeout in seconds; a request without an answer by then counts as failed."),
    ] = 10.0,
    max_requests: Annotated[
        int, option("Maximum number of requests; a plan with more is rejected.")
    ] = 5_000_000,
    model: Annotated[
        str,
        option("Model name.", "--model", "-m", shown="from the URL, or the server's only model"),
    ] = "",
    version: Annotated[str, option("Version number.")] = "",
    contents: RequestContents,
    header: Annotated[
        list[str] | None,
        option("'NAME: VALUE', sent with every request; may be repeated.", "--header", "-H"),
    ] = None,
    caller: CallerOptions,
    json: Json = False,
    plot: Annotated[
        Path | None, option("Write a plot to this file (.html, .svg, .png).", dir_okay=False)
    ] = None,
) -> None:
    """Send requests at a constant rate, independent of responses, and report latencies.

    Send times are drawn before the run and latency is measured from them, so a stalled server
    delays responses but no requests. Each figure has a 95 % interval that accounts for correlation
    between consecutive requests. Ctrl-C ends the run early and reports it.

    Exit status: 0 all objectives met, or none given; 1 an objective missed, or no request
    succeeded; 3 not enough data, or no server; 130 after Ctrl-C.

    For example:

        headrace load http://127.0.0.1:8000 --rate 200

        headrace load http://127.0.0.1:8000 --model digits -r 500 --slo p99=20ms,error=0.1%

        headrace load https://models.example/v2/models/bert/infer -r 50 --size 128 --ca-file ca.pem

        headrace load http://127.0.0.1:8000 -r 100,200,400,800 --slo p99=20ms --plot load.html
    """
    from headrace.client.credentials import trust_of
    from headrace.load.target import parse_headers

    if plot is not None:
        from headrace.cli.base.plots import PAGES, check_plot

        check_plot(plot, PAGES)
    objectives = parse_objectives(",".join(slo or ()))
    plans = [
        check_plan(
            LoadPlan(
                rate_per_s=rate_per_s,
                seconds=seconds,
                warm_up_s=warm_up,
                arrivals=ArrivalProcess(arrivals.value),
                seed=seed,
                connections=connections,
                timeout_s=timeout_s,
                max_requests=max_requests,
            )
        )
        for rate_per_s in _rates(rate)
    ]
    target = open_target(
        url,
        model=model,
        version=version,
        headers=parse_headers(header or ()),
        api_key=caller.secret("--key"),
        token=caller.secret("--token"),
        trust=trust_of(caller.ca_file, caller.certificate(), ""),
        allow_insecure=caller.allow_insecure,
    )
    ready, description = ready_target(target, contents)
    results: list[LoadResult] = []
    for plan in plans:
        say(announcement(plan, ready, description))
        with live() as on_tick:
            results.append(run_load(plan, ready, objectives=objectives, on_tick=on_tick))
        if results[-1].interrupted or results[-1].verdict is ObjectiveVerdict.MISSED:
            break
    is_one = len(results) == 1
    if json:
        location = (target.url, ready.model)
        write_json(
            document(results[0], *location) if is_one else steps_document(results, *location)
        )
    else:
        show(*(report(results[0]) if is_one else steps_report(results)))
    if plot is not None:
        from headrace.cli.base.plots import draw_load

        draw_load(plot, results, title=f"{ready.model} at {target.url}")
        say(f"drawn to {plot}")
    codes = []
    for result in results:
        if result.interrupted:
            codes.append(INTERRUPTED)
        elif result.verdict is ObjectiveVerdict.MISSED or result.failed == result.requests:
            codes.append(FAILED)
        else:
            codes.append(NOT_READY if result.verdict is ObjectiveVerdict.UNKNOWN else OK)
    # With several rates one success is enough: the run searches the limit.
    code = INTERRUPTED if INTERRUPTED in codes else min(codes, key=_BEST_FIRST.index)
    if code != OK:
        raise typer.Exit(code)


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        rates = []
    if not rates or len(rates) > _MAX_STEPS:
        msg = f"'{text[:80]}' is not a rate; write 200, or up to {_MAX_STEPS} of them: 100,200,400"
        raise typer.BadParameter(msg, param_hint="--rate")
    return rates
