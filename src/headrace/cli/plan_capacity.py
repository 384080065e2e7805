"""`headrace plan capacity`: how many replicas, nodes, clusters for a load, and at what cost?"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.options import DEFAULT_HOME, Home, Json

_LOAD, _MODEL, _PROMISE = "The load", "The model", "What is promised"
_MACHINES, _AROUND, _OUTPUT = "Machines", "Around the replicas", "Output"


class BalancingName(StrEnum):
    """How requests find a replica."""

    LEAST_REQUEST = "least-request"
    RANDOM = "random"


def capacity(
    *,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Requests a second, all the time.",
            show_default="from --traffic",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    traffic: Annotated[
        Path | None,
        typer.Option(
            help="Rates over time: CSV with columns such as time,rate, JSON lines, or a JSON list.",
            exists=True,
            dir_okay=False,
            show_default="none",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    growth: Annotated[
        str, typer.Option(help="More each month, such as 5%.", rich_help_panel=_LOAD)
    ] = "0%",
    months: Annotated[
        int, typer.Option(help="Plan for the load in so many months.", rich_help_panel=_LOAD)
    ] = 0,
    at: Annotated[
        str,
        typer.Option(help="What if: all of the load so many times, 10x.", rich_help_panel=_LOAD),
    ] = "1x",
    peak_factor: Annotated[
        float,
        typer.Option(help="The busiest second over the highest rate given.", rich_help_panel=_LOAD),
    ] = 1.0,
    burstiness: Annotated[
        float,
        typer.Option(
            help="Variance over mean of requests in a second; 1 is chance. "
            "`headrace plan mode --log` measures it.",
            min=1.0,
            max=10_000.0,
            rich_help_panel=_LOAD,
        ),
    ] = 1.0,
    model: Annotated[
        str,
        typer.Option(
            help="A model that `headrace profile` has measured: a path or NAME[:VERSION].",
            show_default="none",
            rich_help_panel=_MODEL,
        ),
    ] = "",
    service_time: Annotated[
        str,
        typer.Option(
            help="Instead of --model: a run's time, 4ms, or by rows in the batch: "
            "1=4ms,8=9ms,32=30ms.",
            show_default="from the profile",
            rich_help_panel=_MODEL,
        ),
    ] = "",
    service_cv: Annotated[
        float | None,
        typer.Option(
            help="With --service-time: standard deviation of a run's time over its mean.",
            show_default="0.1",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            help="With --service-time: runs at once in a replica.",
            show_default="one a core",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    cores: Annotated[
        float | None,
        typer.Option(
            help="Of one replica.", show_default="from the profile, else 1", rich_help_panel=_MODEL
        ),
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            help="Of one replica, such as 500MB.",
            show_default="from the profile, else not reckoned",
            rich_help_panel=_MODEL,
        ),
    ] = "",
    gpus: Annotated[
        int, typer.Option(min=0, max=64, help="Of one replica.", rich_help_panel=_MODEL)
    ] = 0,
    p99: Annotated[
        str,
        typer.Option(
            help="99 of 100 answers come within it, such as 50ms; the gateway's part (0.1 ms) and "
            "the network not counted.",
            show_default="from --spec, else none: replicas 80% busy",
            rich_help_panel=_PROMISE,
        ),
    ] = "",
    availability: Annotated[
        str,
        typer.Option(
            help="Share of time with nodes enough for the peak, such as 99.9%.",
            show_default="not asked for",
            rich_help_panel=_PROMISE,
        ),
    ] = "",
    node_availability: Annotated[
        str,
        typer.Option(
            help="Share of time that a node is up. The default is what Amazon's SLA promises of "
            "an instance.",
            rich_help_panel=_PROMISE,
        ),
    ] = "99.5%",
    spare_nodes: Annotated[
        int,
        typer.Option(help="Nodes of a cluster that may fail at once.", rich_help_panel=_PROMISE),
    ] = 1,
    zones: Annotated[
        int, typer.Option(help="Over which nodes are spread.", rich_help_panel=_PROMISE)
    ] = 1,
    lose_zone: Annotated[
        bool, typer.Option("--lose-zone", help="A zone may fail.", rich_help_panel=_PROMISE)
    ] = False,
    clusters: Annotated[
        int, typer.Option(min=1, max=1000, help="At least so many.", rich_help_panel=_PROMISE)
    ] = 1,
    spare_clusters: Annotated[
        int,
        typer.Option(
            min=0, max=999, help="Clusters that may fail as a whole.", rich_help_panel=_PROMISE
        ),
    ] = 0,
    node: Annotated[
        list[str] | None,
        typer.Option(
            help="A machine to choose: name=m,cores=8,memory=32GiB,cost=0.4, and where it has "
            "them gpus=1, speed=1.3 (over the machine that was measured), network=10 (Gbit/s). "
            "Again for others.",
            show_default="4, 8, 16 and 32 cores with 4 GiB each",
            rich_help_panel=_MACHINES,
        ),
    ] = None,
    nodes: Annotated[
        Path | None,
        typer.Option(
            help="The same as a JSON or YAML list.",
            exists=True,
            dir_okay=False,
            show_default="none",
            rich_help_panel=_MACHINES,
        ),
    ] = None,
    cost_per_hour: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="Of a core, in any currency, where no node is named.",
            rich_help_panel=_MACHINES,
        ),
    ] = 0.05,
    balancing: Annotated[
        BalancingName,
        typer.Option(
            help="How the gateway chooses a replica: the less loaded of two, as Headrace's does, "
            "or any.",
            rich_help_panel=_AROUND,
        ),
    ] = BalancingName.LEAST_REQUEST,
    gateway_rate: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            help="Requests a second of a gateway's core.",
            show_default="22000",
            rich_help_panel=_AROUND,
        ),
    ] = None,
    gateway_cores: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Of one gateway.",
            show_default="4",
            rich_help_panel=_AROUND,
        ),
    ] = None,
    replicas_per_cluster: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="That one control plane looks after.",
            show_default="1000",
            rich_help_panel=_AROUND,
        ),
    ] = None,
    request_size: Annotated[
        str,
        typer.Option(
            help="On the wire, headers included, such as 2kB.",
            show_default="network not reckoned",
            rich_help_panel=_AROUND,
        ),
    ] = "",
    response_size: Annotated[
        str,
        typer.Option(
            help="The same of an answer.", show_default="as --request-size", rich_help_panel=_AROUND
        ),
    ] = "",
    spec: Annotated[
        Path | None,
        typer.Option(
            help="Take model and SLO of an endpoint from this file, and print its `autoscale` "
            "part; nothing is written.",
            exists=True,
            dir_okay=False,
            show_default="none",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    endpoint: Annotated[
        str,
        typer.Option(help="Of --spec.", show_default="the only one", rich_help_panel=_OUTPUT),
    ] = "",
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draw replicas and cost over the forecast: .png, .svg or .pdf.",
            dir_okay=False,
            show_default="none",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    home: Home = DEFAULT_HOME,
    json: Json = False,
) -> None:
    """Reckon replicas, nodes, clusters and cost from a profile, an SLO and a traffic forecast.

    By queueing theory, for each type of node; the cheapest that fits comes first. Exits with 3 if
    the SLO cannot be met by any number of replicas. Examples:

      headrace plan capacity --model fraud --traffic week.csv --growth 5% --months 12 --p99 50ms

      headrace plan capacity --service-time 1=4ms,8=9ms --rate 5000 --p99 40ms --at 10x
    """
    from headrace.advise.capacity.fleet import SloUnreachableError
    from headrace.advise.capacity.plan import plan_capacity
    from headrace.cli import plan_capacity_asked as asked
    from headrace.cli.failures import NOT_READY, report
    from headrace.cli.output import progress
    from headrace.cli.plan_capacity_nodes import node_types

    if plot is not None:
        asked.check_plot(plot)
    target = asked.target(spec, endpoint)
    curve, shape = asked.replica(
        asked.Replica(
            model=model or ("" if service_time else target.model),
            service_time=service_time,
            service_cv=service_cv,
            runs=runs,
            cores=cores,
            memory=memory,
            gpus=gpus,
        ),
        home,
    )
    wanted = asked.wanted(
        curve,
        shape,
        forecast=asked.forecast(
            rate, traffic, growth=growth, months=months, at=at, peak_factor=peak_factor
        ),
        promise=asked.promise(p99, target, burstiness=burstiness, balancing=balancing.value),
        headroom=asked.headroom(
            availability,
            node_availability,
            spare_nodes=spare_nodes,
            zones=zones,
            lose_zone=lose_zone,
        ),
        limits=asked.limits(gateway_rate, gateway_cores, replicas_per_cluster),
        sizes=asked.sizes(request_size, response_size),
        clusters=clusters,
        spare_clusters=spare_clusters,
    )
    choice = node_types(node or [], nodes, cost_per_hour)
    try:
        with progress("solving queues"):
            plan = plan_capacity(wanted, choice)
    except SloUnreachableError as error:
        report(error, debug=False)
        raise typer.Exit(NOT_READY) from None
    from headrace.cli import plan_capacity_view as view

    if plot is not None:
        view.draw(plan, plot)
    if json:
        view.write(plan, wanted, target)
    else:
        view.show_plan(plan, wanted, target, is_assumed=not (node or nodes))
    if plan.recommended is None:
        raise typer.Exit(NOT_READY)
