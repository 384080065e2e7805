"""`headrace plan capacity`: replicas, nodes, clusters and cost of a load."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.text import Text

from headrace.advise.capacity import (
    Demand,
    Forecast,
    NodeType,
    SloUnreachableError,
    plan_capacity,
    replica_by_hand,
    replica_of,
)
from headrace.cli.options import DEFAULT_HOME, Home, Json, seconds
from headrace.cli.output import NOT_READY, report, show, table, write_json
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.spec import parse_spec
from headrace.core.text import bytes_text, duration_text, number_text, size_bytes

if TYPE_CHECKING:
    from headrace.advise.capacity import CapacityPlan, Fleet, Option, Replica

_MAX_CORES: Final = 4096
_NODE_KEYS: Final = ("name", "cores", "memory", "cost", "gpus", "speed")
_MADE_UP_CORES: Final = (4, 8, 16, 32)
_MADE_UP_MEMORY: Final = 4 << 30
_MAX_MONTH_ROWS: Final = 12


def capacity(
    *,
    rate: Annotated[
        float | None,
        typer.Option(help="Requests a second, all the time.", show_default="from --traffic"),
    ] = None,
    traffic: Annotated[
        Path | None,
        typer.Option(
            help="Rates over equal intervals: CSV with a column `rate`, or JSON lines.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    growth: Annotated[str, typer.Option(help="More each month, such as 5%.")] = "0%",
    months: Annotated[
        int, typer.Option(min=0, max=120, help="Plan for the load in so many months.")
    ] = 0,
    peak_factor: Annotated[
        float,
        typer.Option(min=1.0, max=1000.0, help="The busiest second over the highest rate given."),
    ] = 1.0,
    model: Annotated[
        str,
        typer.Option(
            help="A model that `headrace profile` has measured: a path or NAME[:VERSION]."
        ),
    ] = "",
    service_time: Annotated[
        str,
        typer.Option(
            help="Instead of --model: a run's time, 4ms, or by rows in the batch: "
            "1=4ms,8=9ms,32=30ms.",
            show_default="from the profile",
        ),
    ] = "",
    runs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="With --service-time: runs at once in a replica.",
            show_default="one a core",
        ),
    ] = None,
    cores: Annotated[
        float | None, typer.Option(help="Of one replica.", show_default="from the profile, else 1")
    ] = None,
    memory: Annotated[
        str,
        typer.Option(
            help="Of one replica, such as 500MB.", show_default="from the profile, else left out"
        ),
    ] = "",
    gpus: Annotated[int, typer.Option(min=0, max=64, help="Of one replica.")] = 0,
    p99: Annotated[
        str,
        typer.Option(
            help="99 of 100 answers come within it, such as 50ms; the gateway's part (0.1 ms) and "
            "the network not counted.",
            show_default="from --spec, else none: replicas 80% loaded",
        ),
    ] = "",
    spare_nodes: Annotated[
        int, typer.Option(min=0, max=1000, help="Nodes of a cluster that may fail at once.")
    ] = 1,
    zones: Annotated[int, typer.Option(min=1, max=100, help="Over which nodes are spread.")] = 1,
    lose_zone: Annotated[bool, typer.Option("--lose-zone", help="A zone may fail.")] = False,
    node: Annotated[
        list[str] | None,
        typer.Option(
            help="A machine to choose: name=m,cores=8,memory=32GiB,cost=0.4, and where it has "
            "them gpus=1, speed=1.3 (over the machine that was measured). Again for others.",
            show_default="4, 8, 16 and 32 cores with 4 GiB each",
        ),
    ] = None,
    cost_per_hour: Annotated[
        float, typer.Option(min=0.0, help="Of a core, in any currency, where no node is named.")
    ] = 0.05,
    gateway_rate: Annotated[
        float, typer.Option(min=1.0, help="Requests a second of a gateway's core.")
    ] = 22_000.0,
    gateway_cores: Annotated[int, typer.Option(min=1, max=1024, help="Of one gateway.")] = 4,
    spec: Annotated[
        Path | None,
        typer.Option(
            help="Take model and SLO of an endpoint from this file, and print its `autoscale` "
            "part; nothing is written.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    endpoint: Annotated[str, typer.Option(help="Of --spec.", show_default="the only one")] = "",
    home: Home = DEFAULT_HOME,
    json: Json = False,
) -> None:
    """Compute replicas, nodes, clusters and cost from a profile, an SLO and a traffic forecast.

    The cheapest type of node that fits comes first. Exits with 3 if the SLO cannot be met by any
    number of replicas. Examples:

      headrace plan capacity --model fraud --traffic week.csv --growth 5% --months 12 --p99 50ms

      headrace plan capacity --service-time 1=4ms,8=9ms --rate 5000 --p99 40ms
    """
    from headrace.advise.arrivals import read_rates

    target = _target(spec, endpoint)
    if (rate is None) == (traffic is None):
        problem = "give only one" if rate is not None else "how many requests come? give"
        raise typer.BadParameter(f"{problem} of --rate and --traffic", param_hint="--rate")
    rates = read_rates(traffic) if traffic is not None else (rate or 0.0,)
    growth_ratio = _percentage(growth, "--growth")
    if growth_ratio and months == 0:
        raise typer.BadParameter("for how many months? add --months", param_hint="--growth")
    with _usage():
        demand = Demand(
            replica=_replica(
                model or ("" if service_time else target.model),
                service_time,
                runs=runs,
                cores=cores,
                memory=memory,
                gpus=gpus,
                home=home,
            ),
            forecast=Forecast(
                rates=rates,
                growth_ratio=growth_ratio,
                months=months,
                peak_factor=peak_factor,
            ),
            p99_s=seconds(p99, "--p99") if p99 else target.p99_s,
            spare_nodes=spare_nodes,
            zones=zones,
            lose_zone=lose_zone,
            gateway_rate_per_core=gateway_rate,
            gateway_cores=gateway_cores,
        )
        nodes = _nodes(node or [], cost_per_hour)
    try:
        plan = plan_capacity(demand, nodes)
    except SloUnreachableError as error:
        report(error, debug=False)
        raise typer.Exit(NOT_READY) from None
    if json:
        write_json({"endpoint": target.endpoint, "demand": asdict(demand), **asdict(plan)})
    else:
        _show(plan, demand, target, is_made_up=not node)
    if plan.recommended is None:
        raise typer.Exit(NOT_READY)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """The endpoint of a spec that is planned for; empty without a spec."""

    endpoint: str = ""
    model: str = ""
    p99_s: float | None = None


@contextmanager
def _usage() -> Iterator[None]:
    """Report what is refused within as a mistake of the command line."""
    try:
        yield
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error)) from None


def _target(spec: Path | None, endpoint: str) -> _Target:
    if spec is None:
        if endpoint:
            raise typer.BadParameter("an endpoint of which --spec?", param_hint="--endpoint")
        return _Target()

    try:
        parsed = parse_spec(spec.read_text(), base_dir=spec.parent, exists=lambda _: True)
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(f"{spec} cannot be read: {error}") from None
    names = [entry.name for entry in parsed.endpoints]
    if not names:
        raise FailedPreconditionError(f"{spec} has no endpoints to plan for")
    if endpoint not in names and (endpoint or len(names) > 1):
        problem = f"no endpoint '{endpoint}'" if endpoint else "several endpoints"
        msg = f"{spec} has {problem}; say --endpoint with one of {', '.join(names)}"
        raise FailedPreconditionError(msg)
    entry = next(entry for entry in parsed.endpoints if entry.name == (endpoint or names[0]))
    return _Target(
        endpoint=entry.name,
        model=str(entry.model or ""),
        p99_s=None if entry.slo is None else entry.slo.latency_s,
    )


def _replica(
    model: str,
    service_time: str,
    *,
    runs: int | None,
    cores: float | None,
    memory: str,
    gpus: int,
    home: Path,
) -> "Replica":
    """By a profile, or by hand."""
    if bool(model) == bool(service_time):
        problem = "give only one" if model else "what does a run take? give one"
        msg = f"{problem} of --service-time and --model (which `headrace profile` has measured)"
        raise typer.BadParameter(msg, param_hint="--model")
    if cores is not None and not 0.0 < cores <= _MAX_CORES:
        msg = f"{cores:g} is no number of cores up to {_MAX_CORES}"
        raise typer.BadParameter(msg, param_hint="--cores")
    if model:
        from headrace.cli.profile.documents import newest_profile

        if runs is not None:
            raise typer.BadParameter("the profile has the runs at once", param_hint="--runs")
        replica = replica_of(newest_profile(model, home))
    else:
        replica = replica_by_hand(
            _service_times(service_time),
            runs=runs if runs is not None else max(1, math.floor(cores or 1.0)),
        )
    return replace(
        replica,
        cores=cores or replica.cores,
        memory_bytes=_bytes(memory, "--memory") if memory else replica.memory_bytes,
        gpus=gpus,
    )


def _service_times(text: str) -> dict[int, float]:
    """Seconds by rows out of `4ms`, or `1=4ms,8=9ms`."""
    flag = "--service-time"
    if "=" not in text:
        return {1: seconds(text.strip(), flag)}
    times: dict[int, float] = {}
    for part in text.split(","):
        rows, _, time = part.partition("=")
        if not (rows.strip().isascii() and rows.strip().isdigit()):
            raise typer.BadParameter(f"'{part}' is not rows=time, such as 8=9ms", param_hint=flag)
        if int(rows) in times:
            raise typer.BadParameter(f"{int(rows)} rows are there twice", param_hint=flag)
        times[int(rows)] = seconds(time.strip(), flag)
    return times


def _nodes(texts: Sequence[str], core_cost: float) -> list["NodeType"]:
    """The machines to choose from: named, or made up."""
    if not texts:
        return [
            NodeType(
                name=f"{cores}-core",
                cores=cores,
                memory_bytes=cores * _MADE_UP_MEMORY,
                cost_per_hour=cores * core_cost,
            )
            for cores in _MADE_UP_CORES
        ]
    nodes = [_node(text) for text in texts]
    names = [node.name for node in nodes]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise typer.BadParameter(f"two types of node are called '{again}'", param_hint="--node")
    return nodes


def _node(text: str) -> "NodeType":

    pairs = [part.partition("=") for part in text.split(",")]
    entry = {key.strip(): value.strip() for key, _, value in pairs}
    unknown = [key for key in entry if key not in _NODE_KEYS]
    missing = [key for key in _NODE_KEYS[:4] if key not in entry]
    if unknown or missing:
        problem = f"'{unknown[0]}' is not known" if unknown else f"'{missing[0]}' is missing"
        msg = f"'{text}' is not name=m,cores=8,memory=32GiB,cost=0.4: {problem}"
        raise typer.BadParameter(msg, param_hint="--node")
    return NodeType(
        name=entry["name"],
        cores=_bounded(entry, "cores", 0.1, _MAX_CORES),
        memory_bytes=_bytes(entry["memory"], "--node"),
        cost_per_hour=_bounded(entry, "cost", 0.0, 1e6),
        gpus=int(_bounded(entry, "gpus", 0.0, 64.0)) if "gpus" in entry else 0,
        speed=_bounded(entry, "speed", 0.01, 100.0) if "speed" in entry else 1.0,
    )


def _bounded(entry: Mapping[str, str], key: str, low: float, high: float) -> float:
    try:
        value = float(entry[key])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        msg = f"{key} of '{entry['name']}' is from {low:g} to {high:g}, not {entry[key]}"
        raise typer.BadParameter(msg, param_hint="--node")
    return value


def _bytes(text: str, flag: str) -> int:
    size = size_bytes(text)
    if size is None:
        raise typer.BadParameter(f"'{text}' is no size, such as 500MB", param_hint=flag)
    return size


def _percentage(text: str, flag: str) -> float:
    word = text.strip()
    try:
        return float(word.removesuffix("%")) * (0.01 if word.endswith("%") else 1.0)
    except ValueError:
        raise typer.BadParameter(f"'{text}' is no number, such as 5%", param_hint=flag) from None


def _show(plan: "CapacityPlan", demand: "Demand", target: _Target, *, is_made_up: bool) -> None:

    heads = ("node", "replicas", "nodes", "clusters", "gateways", "p99", "load", "a month")
    rows = [_row(option, plan.recommended) for option in plan.options]
    show(table(rows, *heads, "a million"), "")
    best = next((one for one in plan.options if one.node.name == plan.recommended), None)
    for option in plan.options if best is None else (best,):
        show(f"{option.node.name}: " + "\n  ".join(option.why))
    if best is not None and best.fleet is not None:
        nodes = best.fleet.nodes
        total = f"  {number_text(nodes * best.node.cores)} cores, "
        total += bytes_text(nodes * best.node.memory_bytes)
        show(total)
    if len(plan.months) > 1:
        show("", _month_table(plan.months))
    if best is not None:
        show("", *_spec_lines(plan, demand, target))
    notes = ["nodes and their cost are made up; name yours with --node"] if is_made_up else []
    show("", *notes, *(f"assumed: {line}" for line in plan.assumptions))
    peak, mean = number_text(plan.peak_rate), number_text(plan.mean_rate)
    verdict = "none of them"
    if best is not None and best.fleet is not None:
        verdict = f"{best.fleet.nodes:,} x {best.node.name}"
    text = f"recommended for {peak} requests/s at the peak, {mean} on average: {verdict}"
    show(Text(text, style="bold"))


def _row(option: "Option", recommended: str | None) -> list[str]:
    name = option.node.name
    fleet = option.fleet
    if fleet is None:
        return [f"{name} (does not fit)", *["-"] * 8]
    return [
        f"{name} *" if name == recommended else name,
        f"{fleet.replicas:,}",
        f"{fleet.nodes:,}",
        f"{fleet.clusters:,}",
        f"{fleet.gateways:,}",
        duration_text(option.p99_s),
        f"{option.load_ratio:.0%}",
        _cost(fleet.cost_per_month),
        number_text(option.cost_per_million),
    ]


def _month_table(months: Sequence["Fleet"]) -> "Text":
    step = max(1, (len(months) - 1) // _MAX_MONTH_ROWS)
    rows = [
        (
            str(month),
            number_text(fleet.rate),
            f"{fleet.replicas:,}",
            f"{fleet.nodes:,}",
            f"{fleet.clusters:,}",
            _cost(fleet.cost_per_month),
        )
        for month, fleet in enumerate(months)
        if month % step == 0
    ]
    return table(rows, "month", "peak requests/s", "replicas", "nodes", "clusters", "a month")


def _spec_lines(plan: "CapacityPlan", demand: "Demand", target: _Target) -> list[str]:
    """The part of a spec that follows, for each cluster."""
    lines = [
        "endpoints:",
        f"  - name: {target.endpoint or 'NAME'}",
        "    autoscale:",
        f"      min_replicas: {plan.min_replicas}",
        f"      max_replicas: {plan.max_replicas}",
    ]
    if demand.p99_s is not None:
        lines += ["    slo:", f"      latency_s: {demand.p99_s:g}"]
    return lines


def _cost(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 1000.0 else f"{amount:,.2f}"  # noqa: PLR2004  # cents of thousands say nothing
