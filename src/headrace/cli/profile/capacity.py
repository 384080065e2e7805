"""`headrace plan capacity`: replicas, nodes, clusters and cost of a load."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.text import Text

from headrace.advise.plan.capacity import (
    CapacityPlan,
    Fleet,
    Forecast,
    NodeType,
    PlannedLoad,
    ReplicaProfile,
    SloUnreachableError,
    plan_capacity,
    replica_by_hand,
    replica_of,
)
from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import Home, Json, Profiled, file_option, option, seconds
from headrace.cli.base.output import NOT_READY, report, show, table, write_json
from headrace.cli.base.profiles import newest_profile
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.spec.parse import parse_spec
from headrace.core.text import bytes_text, duration_text, number_text, size_bytes

_MAX_CORES: Final = 4096
_NODE_KEYS: Final = ("name", "cores", "memory", "cost", "gpus", "speed")
_DEFAULT_CORES: Final = (4, 8, 16, 32)
_DEFAULT_MEMORY: Final = 4 << 30
_MAX_MONTH_ROWS: Final = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaOptions:
    """Options for the capacity and resources of one replica."""

    model: Profiled = ""
    service_time: Annotated[
        str,
        option(
            "Run time instead of --model: 4ms, or by rows per batch: 1=4ms,8=9ms,32=30ms.",
            shown="from the profile",
        ),
    ] = ""
    runs: Annotated[
        int | None,
        option(
            "With --service-time: concurrent runs per replica.",
            min=1,
            max=1024,
            shown="one per core",
        ),
    ] = None
    cores: Annotated[
        float | None, option("Cores per replica.", shown="from the profile, else 1")
    ] = None
    memory: Annotated[
        str,
        option("Memory per replica, such as 500MB.", shown="from the profile, else not considered"),
    ] = ""
    gpus: Annotated[int, option("Start time of a replica.", min=0, max=64)] = 0

    def replica(self, model: str, home: Path) -> ReplicaProfile:
        """Return the replica from the profile of `model`, or from options without a model."""
        if bool(model) == bool(self.service_time):
            problem = "pass only one" if model else "no run time: pass one"
            msg = f"{problem} of --service-time and --model (which `headrace profile` has measured)"
            raise typer.BadParameter(msg, param_hint="--model")
        cores = self.cores
        if cores is not None and not 0.0 < cores <= _MAX_CORES:
            msg = f"{cores:g} is not a number of cores up to {_MAX_CORES}"
            raise typer.BadParameter(msg, param_hint="--cores")
        if model:
            if self.runs is not None:
                raise typer.BadParameter(
                    "the profile already contains the number of concurrent runs",
                    param_hint="--runs",
                )
            replica = replica_of(newest_profile(model, home))
        else:
            runs = self.runs if self.runs is not None else max(1, math.floor(cores or 1.0))
            replica = replica_by_hand(self._service_times(), runs=runs)
        return replace(
            replica,
            cores=cores or replica.cores,
            memory_bytes=_bytes(self.memory, "--memory") if self.memory else replica.memory_bytes,
            gpus=self.gpus,
        )

    def _service_times(self) -> dict[int, float]:
        """Return seconds by rows, parsed from `4ms`, or `1=4ms,8=9ms`."""
        text, flag = self.service_time, "--service-time"
        if "=" not in text:
            return {1: seconds(text.strip(), flag)}
        times: dict[int, float] = {}
        for part in text.split(","):
            rows, _, time = part.partition("=")
            if not (rows.strip().isascii() and rows.strip().isdigit()):
                msg = f"'{part}' is not rows=time, such as 8=9ms"
                raise typer.BadParameter(msg, param_hint=flag)
            if int(rows) in times:
                raise typer.BadParameter(f"{int(rows)} rows are given twice", param_hint=flag)
            times[int(rows)] = seconds(time.strip(), flag)
        return times


def capacity(
    *,
    rate: Annotated[
        float | None, option("Constant load in requests per second.", shown="from --traffic")
    ] = None,
    traffic: Annotated[
        Path | None,
        file_option("Load over time, at equal intervals: CSV with a column `rate`, or JSON lines."),
    ] = None,
    growth: Annotated[str, option("Monthly growth, such as 5%.")] = "0%",
    months: Annotated[int, option("Number of months of growth to plan for.", min=0, max=120)] = 0,
    peak_factor: Annotated[
        float, option("Ratio of the busiest second to the highest given rate.", min=1.0, max=1000.0)
    ] = 1.0,
    options: ReplicaOptions,
    p99: Annotated[
        str,
        option(
            "p99 latency target, such as 50ms; excludes the gateway (0.1 ms) and the network.",
            shown="from --spec, else none: replicas at most 80 % loaded",
        ),
    ] = "",
    spare_nodes: Annotated[
        int, option("Number of cluster nodes that may fail at the same time.", min=0, max=1000)
    ] = 1,
    zones: Annotated[
        int, option("Number of zones that nodes are spread over.", min=1, max=100)
    ] = 1,
    lose_zone: Annotated[bool, option("Tolerate the failure of one zone.", "--lose-zone")] = False,
    node: Annotated[
        list[str] | None,
        option(
            "Node type: name=m,cores=8,memory=32GiB,cost=0.4, optionally gpus=1 and speed=1.3 "
            "(relative to the measured machine). May be repeated.",
            shown="4, 8, 16 and 32 cores with 4 GiB each",
        ),
    ] = None,
    cost_per_hour: Annotated[
        float, option("Cost of a core in any currency, without --node.", min=0.0)
    ] = 0.05,
    gateway_rate: Annotated[
        float, option("Capacity of a gateway core in requests per second.", min=1.0)
    ] = 22_000.0,
    gateway_cores: Annotated[int, option("Cores per gateway.", min=1, max=1024)] = 4,
    spec: Annotated[
        Path | None,
        file_option(
            "Read model and SLO of an endpoint from this file and print its `autoscale` "
            "section; the file is not changed."
        ),
    ] = None,
    endpoint: Annotated[str, option("Endpoint of --spec.", shown="the only endpoint")] = "",
    home: Home = DEFAULT_HOME,
    json: Json = False,
) -> None:
    """Compute replicas, nodes and cost from a profile, an SLO and a traffic forecast.

    The cheapest node type that fits is listed first. Exit status 3 if no number of replicas meets
    the SLO. Examples:

      headrace plan capacity --model fraud --traffic week.csv --growth 5% --months 12 --p99 50ms

      headrace plan capacity --service-time 1=4ms,8=9ms --rate 5000 --p99 40ms
    """
    from headrace.advise.plan.arrivals import read_rates

    target = _target(spec, endpoint)
    if (rate is None) == (traffic is None):
        problem = "pass only one" if rate is not None else "no load: pass one"
        raise typer.BadParameter(f"{problem} of --rate and --traffic", param_hint="--rate")
    rates = read_rates(traffic) if traffic is not None else (rate or 0.0,)
    try:
        word = growth.strip()
        growth_ratio = float(word.removesuffix("%")) * (0.01 if word.endswith("%") else 1.0)
    except ValueError:
        msg = f"'{growth}' is not a number such as 5%"
        raise typer.BadParameter(msg, param_hint="--growth") from None
    if growth_ratio and months == 0:
        raise typer.BadParameter("--growth also needs --months", param_hint="--growth")
    try:
        demand = PlannedLoad(
            replica=options.replica(
                options.model or ("" if options.service_time else target.model), home
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
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error)) from None
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
    """Endpoint of a spec for which to plan; empty without a spec."""

    endpoint: str = ""
    model: str = ""
    p99_s: float | None = None


def _target(spec: Path | None, endpoint: str) -> _Target:
    if spec is None:
        if endpoint:
            raise typer.BadParameter("--endpoint needs --spec", param_hint="--endpoint")
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
        msg = f"{spec} has {problem}; pass --endpoint with one of {', '.join(names)}"
        raise FailedPreconditionError(msg)
    entry = next(entry for entry in parsed.endpoints if entry.name == (endpoint or names[0]))
    return _Target(
        endpoint=entry.name,
        model=str(entry.model or ""),
        p99_s=None if entry.slo is None else entry.slo.latency_s,
    )


def _nodes(texts: Sequence[str], core_cost: float) -> list[NodeType]:
    """Return the machine types: those given, or default ones."""
    if not texts:
        return [
            NodeType(
                name=f"{cores}-core",
                cores=cores,
                memory_bytes=cores * _DEFAULT_MEMORY,
                cost_per_hour=cores * core_cost,
            )
            for cores in _DEFAULT_CORES
        ]
    nodes: dict[str, NodeType] = {}
    for text in texts:
        pairs = [part.partition("=") for part in text.split(",")]
        entry = {key.strip(): value.strip() for key, _, value in pairs}
        unknown = [key for key in entry if key not in _NODE_KEYS]
        missing = [key for key in _NODE_KEYS[:4] if key not in entry]
        if unknown or missing:
            problem = (
                f"'{unknown[0]}' is not a known key" if unknown else f"'{missing[0]}' is missing"
            )
            msg = f"'{text}' is not name=m,cores=8,memory=32GiB,cost=0.4: {problem}"
            raise typer.BadParameter(msg, param_hint="--node")
        name = entry["name"]
        if name in nodes:
            raise typer.BadParameter(f"two node types are named '{name}'", param_hint="--node")
        nodes[name] = NodeType(
            name=name,
            cores=_bounded(entry, "cores", 0.1, _MAX_CORES),
            memory_bytes=_bytes(entry["memory"], "--node"),
            cost_per_hour=_bounded(entry, "cost", 0.0, 1e6),
            gpus=int(_bounded(entry, "gpus", 0.0, 64.0)) if "gpus" in entry else 0,
            speed=_bounded(entry, "speed", 0.01, 100.0) if "speed" in entry else 1.0,
        )
    return list(nodes.values())


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
        raise typer.BadParameter(f"'{text}' is not a size such as 500MB", param_hint=flag)
    return size


def _show(plan: CapacityPlan, demand: PlannedLoad, target: _Target, *, is_made_up: bool) -> None:
    rows = []
    best, fleet = None, None
    for choice in plan.options:
        name = choice.node.name
        if choice.fleet is None:
            rows.append([f"{name} (does not fit)", *["-"] * 8])
            continue
        if name == plan.recommended:
            name, best, fleet = f"{name} *", choice, choice.fleet
        rows.append(
            [
                name,
                *_sizes(choice.fleet),
                f"{choice.fleet.gateways:,}",
                duration_text(choice.p99_s),
                f"{choice.load_ratio:.0%}",
                _cost(choice.fleet.cost_per_month),
                number_text(choice.cost_per_million),
            ]
        )
    heads = ("node", "replicas", "nodes", "clusters", "gateways", "p99", "load", "per month")
    show(table(rows, *heads, "per 1M"), "")
    for choice in plan.options if best is None else (best,):
        show(f"{choice.node.name}: " + "\n  ".join(choice.why))
    verdict = "none of them"
    if best is not None and fleet is not None:
        total = f"  {number_text(fleet.nodes * best.node.cores)} cores, "
        show(total + bytes_text(fleet.nodes * best.node.memory_bytes))
        show("", _by_count(demand.replica.faster(best.node.speed), fleet, plan.peak_rate))
        verdict = f"{fleet.nodes:,} x {best.node.name}"
    if len(plan.months) > 1:
        step = max(1, (len(plan.months) - 1) // _MAX_MONTH_ROWS)
        months = [
            (str(month), number_text(then.rate), *_sizes(then), _cost(then.cost_per_month))
            for month, then in enumerate(plan.months)
            if month % step == 0
        ]
        names = ("month", "peak requests/s", "replicas", "nodes", "clusters", "per month")
        show("", table(months, *names))
    if best is not None:
        # Resulting part of a spec, for each cluster.
        show(
            "",
            "endpoints:",
            f"  - name: {target.endpoint or 'NAME'}",
            "    autoscale:",
            f"      min_replicas: {plan.min_replicas}",
            f"      max_replicas: {plan.max_replicas}",
            *([] if demand.p99_s is None else ["    slo:", f"      latency_s: {demand.p99_s:g}"]),
        )
    notes = ["nodes and their cost are assumptions; define yours with --node"] if is_made_up else []
    show("", *notes, *(f"assumed: {line}" for line in plan.assumptions))
    peak, mean = number_text(plan.peak_rate), number_text(plan.mean_rate)
    text = f"recommended for {peak} requests/s at the peak, {mean} on average: {verdict}"
    show(Text(text, style="bold"))


def _sizes(fleet: Fleet) -> tuple[str, str, str]:
    return f"{fleet.replicas:,}", f"{fleet.nodes:,}", f"{fleet.clusters:,}"


def _by_count(replica: ReplicaProfile, fleet: Fleet, peak_rate: float) -> Text:
    """Return load and latency at the peak for several numbers of ready replicas."""
    needed = fleet.replicas_needed
    shares = (0.75, 1.0, 1.25, 1.5, 2.0)
    rows = []
    for count in sorted({max(1, math.floor(share * needed)) for share in shares}):
        load = peak_rate / count / replica.capacity
        p99 = duration_text(replica.p99_s(load)) if load < 1.0 else "does not keep up"
        mark = " *" if count == needed else ""
        rows.append((f"{count:,}{mark}", f"{load:.0%}", p99))
    return table(rows, "active replicas", "peak load", "p99")


def _cost(amount: float) -> str:
    return f"{amount:,.0f}" if amount >= 1000.0 else f"{amount:,.2f}"  # noqa: PLR2004  # cents of thousands say nothing
