"""What was asked of `headrace plan capacity`? Its words as figures; a wrong one names its flag."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import typer

from headrace.advise.capacity.documents import Asked
from headrace.advise.capacity.fleet import Promise
from headrace.advise.capacity.forecast import Forecast, checked, constant, read_curve
from headrace.advise.capacity.limits import Figure, Limits
from headrace.advise.capacity.measured import curve_of, shape_of
from headrace.advise.capacity.nodes import Headroom, Shape
from headrace.advise.capacity.nodes import checked as checked_headroom
from headrace.advise.capacity.queue import Balancing
from headrace.advise.capacity.service import ServiceCurve, curve_by_hand
from headrace.cli.profile_arguments import seconds
from headrace.cli.quantities import parse_share
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.sizes import size_bytes

_USUAL_CV: Final = 0.1
_MOST_CORES: Final = 4096
_GIVEN: Final = "given"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The endpoint of a spec that is planned for; empty without a spec."""

    endpoint: str = ""
    model: str = ""
    p99_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What was said of a replica, in words; None and empty where nothing was."""

    model: str
    service_time: str
    service_cv: float | None
    runs: int | None
    cores: float | None
    memory: str
    gpus: int


@contextmanager
def flagged(flag: str | None = None) -> Iterator[None]:
    """What is refused within is a mistake of the command line; `flag` if the message names none."""
    try:
        yield
    except InvalidArgumentError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def target(spec: Path | None, endpoint: str) -> Target:
    """The endpoint of a spec file.

    Raises:
        FailedPreconditionError: There is none, or several and none was named.
    """
    if spec is None:
        if endpoint:
            raise typer.BadParameter("an endpoint of which --spec?", param_hint="--endpoint")
        return Target()
    from headrace.core.spec import parse_spec  # noqa: PLC0415  # pydantic is slow to import

    try:
        parsed = parse_spec(spec.read_text(), base_dir=spec.parent, exists=lambda _: True)
    except (OSError, UnicodeDecodeError) as error:
        raise FailedPreconditionError(f"{spec} cannot be read: {error}") from None
    names = [one.name for one in parsed.endpoints]
    if not names:
        raise FailedPreconditionError(f"{spec} has no endpoints to plan for")
    if endpoint not in names and (endpoint or len(names) > 1):
        what = f"no endpoint '{endpoint}'" if endpoint else "several endpoints"
        msg = f"{spec} has {what}; say --endpoint with one of {', '.join(names)}"
        raise FailedPreconditionError(msg)
    found = next(one for one in parsed.endpoints if one.name == (endpoint or names[0]))
    slo = found.slo
    return Target(
        endpoint=found.name,
        model=str(found.model or ""),
        p99_s=None if slo is None else slo.latency_s,
    )


def replica(said: Replica, home: Path) -> tuple[ServiceCurve, Shape]:
    """By a profile, or by hand."""
    if said.model and said.service_time:
        raise typer.BadParameter("say it once: --model or --service-time", param_hint="--model")
    if not said.model and not said.service_time:
        raise typer.BadParameter(
            "what does a run take? say --service-time, or name a --model that `headrace profile` "
            "has measured",
            param_hint="--model",
        )
    if said.cores is not None and not 0.0 < said.cores <= _MOST_CORES:
        msg = f"{said.cores:g} is no number of cores up to {_MOST_CORES}"
        raise typer.BadParameter(msg, param_hint="--cores")
    bytes_given = size(said.memory, "--memory")
    if said.service_time:
        cores = said.cores or 1.0
        with flagged():
            curve = curve_by_hand(
                service_times(said.service_time),
                cv=_USUAL_CV if said.service_cv is None else said.service_cv,
                runs=said.runs if said.runs is not None else max(1, math.floor(cores)),
            )
        return curve, Shape(cores=cores, memory_bytes=bytes_given or 0, gpus=said.gpus)
    if said.service_cv is not None or said.runs is not None:
        flag = "--service-cv" if said.service_cv is not None else "--runs"
        raise typer.BadParameter("a profile says that itself", param_hint=flag)
    curve, shape = _profiled(said.model, home)
    return curve, Shape(
        cores=said.cores or shape.cores,
        memory_bytes=bytes_given or shape.memory_bytes,
        gpus=said.gpus,
    )


def _profiled(model: str, home: Path) -> tuple[ServiceCurve, Shape]:
    from headrace.cli.profile_files import read_profiles  # noqa: PLC0415  # the registry is slow to import
    from headrace.cli.profile_subject import find_subject  # noqa: PLC0415  # as above

    subject = find_subject(model, server=None, home=home, runtime="", allow_code=True)
    profiles = sorted(read_profiles(home, subject.digest), key=lambda profile: profile.at)
    if not profiles:
        msg = f"'{model}' has no profile in {home}; make one: headrace profile {model}"
        raise FailedPreconditionError(msg)
    return curve_of(profiles[-1]), shape_of(profiles[-1])


def service_times(text: str) -> dict[int, float]:
    """`4ms`, or `1=4ms,8=9ms`."""
    flag = "--service-time"
    if "=" not in text:
        return {1: seconds(text.strip(), flag)}
    found: dict[int, float] = {}
    for part in text.split(","):
        rows, _, time = part.partition("=")
        if not (rows.strip().isascii() and rows.strip().isdigit()):
            msg = f"'{part}' is not rows=time, such as 8=9ms"
            raise typer.BadParameter(msg, param_hint=flag)
        if int(rows) in found:
            raise typer.BadParameter(f"{int(rows)} rows are there twice", param_hint=flag)
        found[int(rows)] = seconds(time.strip(), flag)
    return found


def forecast(
    rate: float | None,
    traffic: Path | None,
    *,
    growth: str,
    months: int,
    at: str,
    peak_factor: float,
) -> Forecast:
    """The load."""
    if (rate is None) == (traffic is None):
        what = "say it once" if rate is not None else "how many requests come? say"
        raise typer.BadParameter(f"{what}: --rate or --traffic", param_hint="--rate")
    growth_ratio = _number(growth, "--growth", "%", scale=0.01)
    if growth_ratio and months == 0:
        raise typer.BadParameter("for how many months? say --months", param_hint="--growth")
    if rate is None:
        curve = read_curve(traffic or Path())
    else:
        with flagged("--rate"):
            curve = constant(rate)
    asked = Forecast(
        curve=curve,
        growth_ratio=growth_ratio,
        months=months,
        peak_factor=peak_factor,
        times=_number(at, "--at", "x"),
    )
    with flagged():
        return checked(asked)


def promise(p99: str, of: Target, *, burstiness: float, balancing: str) -> Promise:
    """What is promised."""
    return Promise(
        p99_s=seconds(p99, "--p99") if p99 else of.p99_s,
        burstiness=burstiness,
        balancing=Balancing(balancing),
    )


def headroom(
    availability: str, node_availability: str, *, spare_nodes: int, zones: int, lose_zone: bool
) -> Headroom:
    """What may fail."""
    asked = Headroom(
        nodes=spare_nodes,
        zones=zones,
        lose_zone=lose_zone,
        availability=parse_share(availability, "--availability") if availability else None,
        node_availability=parse_share(node_availability, "--node-availability"),
    )
    with flagged():
        return checked_headroom(asked)


def limits(rate: float | None, cores: int | None, replicas: int | None) -> Limits:
    """The usual ones, but for what was given."""
    given = {
        "gateway_rate_per_core": rate,
        "gateway_cores": cores,
        "replicas_per_control_plane": replicas,
    }
    return replace(
        Limits(),
        **{
            name: Figure(name=name, value=float(value), source=_GIVEN)
            for name, value in given.items()
            if value is not None
        },
    )


def sizes(request: str, response: str) -> tuple[int, int] | None:
    """Bytes of a request and an answer."""
    if response and not request:
        raise typer.BadParameter("and of a request?", param_hint="--request-size")
    asked = size(request, "--request-size")
    return None if asked is None else (asked, size(response, "--response-size") or asked)


def wanted(
    curve: ServiceCurve,
    shape: Shape,
    *,
    forecast: Forecast,
    promise: Promise,
    headroom: Headroom,
    limits: Limits,
    sizes: tuple[int, int] | None,
    clusters: int,
    spare_clusters: int,
) -> Asked:
    """All of it together."""
    return Asked(
        curve=curve,
        shape=shape,
        promise=promise,
        forecast=forecast,
        headroom=headroom,
        limits=limits,
        request_bytes=sizes[0] if sizes else None,
        response_bytes=sizes[1] if sizes else None,
        clusters=clusters,
        spare_clusters=spare_clusters,
    )


def check_plot(path: Path) -> None:
    """Refuse a drawing that could not be made, before anything is reckoned."""
    from headrace.cli.rollout_plot import require_matplotlib  # noqa: PLC0415  # an extra

    if path.suffix not in {".png", ".svg", ".pdf"}:
        msg = f"'{path}' ends in neither .png, .svg nor .pdf"
        raise typer.BadParameter(msg, param_hint="--plot")
    if not path.parent.is_dir():
        msg = f"there is no folder '{path.parent}'"
        raise typer.BadParameter(msg, param_hint="--plot")
    require_matplotlib()


def size(text: str, flag: str) -> int | None:
    """Bytes; None for nothing."""
    if not text:
        return None
    found = size_bytes(text)
    if found is None:
        raise typer.BadParameter(f"'{text}' is no size, such as 500MB", param_hint=flag)
    return found


def _number(text: str, flag: str, unit: str, *, scale: float = 1.0) -> float:
    word = text.strip().lower()
    factor = scale if word.endswith(unit) else 1.0
    try:
        return float(word.removesuffix(unit)) * factor
    except ValueError:
        example = "5%" if unit == "%" else "10x"
        msg = f"'{text}' is no number, such as {example}"
        raise typer.BadParameter(msg, param_hint=flag) from None
