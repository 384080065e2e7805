"""`headrace optimize`: make a model faster, and prove what was gained and what was lost."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from enum import StrEnum
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import DEFAULT_HOME, AllowCode, Home, Json, Server
from headrace.cli.quantities import parse_share, seconds

_data = partial(typer.Option, rich_help_panel="Data")
_how = partial(typer.Option, rich_help_panel="What is timed")
_result = partial(typer.Option, rich_help_panel="The result")


class For(StrEnum):
    """What is to become better."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    COST = "cost"


class Elsewhere(StrEnum):
    """What to do where the optimized model is loaded on another processor."""

    VERIFY = "verify"
    REFUSE = "refuse"
    ALLOW = "allow"


def optimize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="NAME[:VERSION] of the registry, or a file or directory.",
            show_default=False,
        ),
    ],
    *,
    data: Annotated[
        Path | None,
        _data(
            "--data",
            help="Labelled examples (.tsv, .csv, .jsonl, .parquet, .npz) that candidates are "
            "judged by.",
            exists=True,
            show_default="none: answers are compared with the model's own, which is weaker",
        ),
    ] = None,
    teach: Annotated[
        Path | None,
        _data(
            "--teach",
            help="Other examples, to calibrate and prune with; none of them are judged by.",
            exists=True,
            show_default="some of --data, without their labels, and no pruning",
        ),
    ] = None,
    label: Annotated[
        str, _data("--label", help="Column of the label.", show_default="told by its name")
    ] = "",
    text: Annotated[
        str, _data("--text", help="Columns of text, with commas.", show_default="told by names")
    ] = "",
    tokenizer: Annotated[
        Path | None,
        _data(
            "--tokenizer",
            help="tokenizer.json, for columns of text.",
            exists=True,
            dir_okay=False,
            show_default="the one beside the model",
        ),
    ] = None,
    metric: Annotated[
        str,
        _data(
            "--metric",
            help="accuracy, auc, spearman, pearson, rmse, mae or r2.",
            show_default="told by the labels",
        ),
    ] = "",
    output: Annotated[
        str, _data("--output", help="The output that is judged.", show_default="told by its shape")
    ] = "",
    calibrate: Annotated[
        int, _data("--calibrate", min=0, max=100_000, help="Examples to calibrate with.")
    ] = 256,
    target: Annotated[
        For, typer.Option("--target", help="What is to become better.")
    ] = For.LATENCY,
    max_loss: Annotated[
        str,
        typer.Option(
            "--max-loss", help="How much of the metric may be lost: 1% is one point of accuracy."
        ),
    ] = "1%",
    cost_per_hour: Annotated[
        float | None,
        typer.Option(
            "--cost-per-hour",
            min=0.0,
            help="What this machine's cores cost in an hour, in any currency.",
            show_default="none: costs are not shown",
        ),
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", help="How long it may take: 90s, 5m, 1h.")
    ] = "3m",
    threads: Annotated[int, _how("--threads", min=1, max=1024, help="Threads inside one run.")] = 1,
    rows: Annotated[int, _how("--rows", min=1, max=65_536, help="Rows of a request.")] = 1,
    length: Annotated[
        int | None,
        _how(
            "--length",
            min=1,
            max=1 << 20,
            help="Size of variable axes besides the rows.",
            show_default="128 for a transformer, else the examples' own",
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only",
            metavar="RECIPE",
            help="Try this recipe; * stands for any letters. Repeatable.",
            show_default="all that apply",
        ),
    ] = None,
    name: Annotated[
        str,
        _result("--name", help="As the next version of which model.", show_default="MODEL's own"),
    ] = "",
    push: Annotated[
        bool, _result("--push/--no-push", help="Store the result as a version.")
    ] = True,
    out: Annotated[
        Path | None,
        _result("--out", help="Directory to keep the result in too.", show_default="no"),
    ] = None,
    report: Annotated[
        Path | None,
        _result(
            "--report",
            help="Where to write the report for a browser.",
            dir_okay=False,
            show_default="optimize-NAME.html in --home",
        ),
    ] = None,
    canary: Annotated[
        str,
        _result("--canary", metavar="ENDPOINT", help="Roll the result out there, as a canary."),
    ] = "",
    on_other_processor: Annotated[
        Elsewhere,
        _result(
            "--on-other-processor",
            help="What to do where it is loaded on another processor.",
        ),
    ] = Elsewhere.VERIFY,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a search that was interrupted.")
    ] = False,
    runtime: Annotated[
        str, typer.Option("--runtime", help="Of a file.", show_default="told by the file")
    ] = "",
    allow_code: AllowCode = False,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make MODEL faster, or smaller, without losing what it knows, and show the proof.

    Candidates - graph options, other precisions, quantized and pruned models, in ONNX Runtime and
    OpenVINO - are timed in turn with the model as it is, while windows that other programs
    disturbed are left out, and judged by a paired test on labels. The best one is stored as the
    model's next version, with its lineage. What was rejected, and why, stands in the report.

    For example:

        headrace optimize sentiment.onnx --data dev.tsv

        headrace optimize fraud:3 --data test.parquet --label is_fraud --target throughput

        headrace optimize fraud:3 --target cost --cost-per-hour 0.17

        headrace optimize sentiment:1 --data dev.tsv --teach train.tsv --canary sentiment
    """
    from headrace.cli.optimize_run import Wishes, run
    from headrace.core import InvalidArgumentError
    from headrace.optimize.search.process import SearchRequest, Target
    from headrace.runtimes.optimized_file import OtherProcessor

    if canary and not push:
        msg = "--canary rolls out a version, and with --no-push there is none"
        raise typer.BadParameter(msg)
    request = SearchRequest(
        source="",
        runtime=runtime,
        allow_code=allow_code,
        label=label,
        text=text,
        metric=metric,
        output=output,
        calibrate=calibrate,
        target=Target(target),
        max_loss=parse_share(max_loss, "--max-loss"),
        budget_s=seconds(budget, "--budget"),
        threads=threads,
        rows=rows,
        length=length,
        only=tuple(only or ()),
        on_other_processor=OtherProcessor(on_other_processor),
    )
    if cost_per_hour is not None and not isfinite(cost_per_hour):
        raise typer.BadParameter(f"{cost_per_hour} is no price", param_hint="--cost-per-hour")
    if teach is not None and data is None:
        msg = "--teach without --data: there is nothing that candidates could be judged by"
        raise InvalidArgumentError(msg)
    run(
        model,
        request,
        Wishes(
            data=data,
            teach=teach,
            tokenizer=tokenizer,
            name=name,
            push=push,
            out=out,
            report=report,
            canary=canary,
            cost_per_hour=cost_per_hour,
            resume=resume,
            json=json,
            server=server,
            home=home,
        ),
    )
