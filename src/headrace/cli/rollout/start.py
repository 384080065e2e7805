"""`headrace rollout start`: starts a rollout, and optionally waits for its end."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headrace.cli.base.model_store import model_store
from headrace.cli.base.offline import Pushed
from headrace.cli.base.options import (
    AllowCode,
    ControlPlaneOptions,
    EndpointName,
    Json,
    WaitS,
    file_option,
    option,
)
from headrace.cli.base.output import FAILED, progress, say, write_json
from headrace.cli.rollout.view import progress_of
from headrace.core import DeadlineExceededError, InvalidArgumentError, UnavailableError, span
from headrace.core.spec.yaml import read_yaml

if TYPE_CHECKING:
    from headrace.cli.base.connection import CommandTarget
    from headrace.cli.base.management import Management


class Strategy(StrEnum):
    """Rollout strategy."""

    CANARY = "canary"
    BLUE_GREEN = "blue-green"
    AB = "ab"
    SHADOW = "shadow"


class StepUntil(StrEnum):
    """Condition of each canary step, besides its pause."""

    VERDICT = "verdict"
    APPROVAL = "approval"
    NONE = "none"


_BELONGS_TO: Final = {
    "steps": Strategy.CANARY,
    "pause_s": Strategy.CANARY,
    "until": Strategy.CANARY,
    "baseline": Strategy.CANARY,
    "weight": Strategy.AB,
    "mirror_percent": Strategy.SHADOW,
    "promotes": Strategy.SHADOW,
    "preview_s": Strategy.BLUE_GREEN,
    "keep_s": Strategy.BLUE_GREEN,
    "approval": Strategy.BLUE_GREEN,
}
_DEFAULT_STEPS: Final = "5,25,50"
_MAX_WEIGHT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """Options of a rollout plan; None and False if not given."""

    strategy: Annotated[
        Strategy | None, option("Rollout strategy.", shown="the endpoint's strategy, else canary")
    ] = None
    steps: Annotated[str | None, option("Canary: weights in percent.", shown="5,25,50")] = None
    pause_s: Annotated[
        float | None, option("Canary: minimum duration of each step.", min=0, shown="0")
    ] = None
    until: Annotated[
        StepUntil | None, option("Canary: condition to leave a step.", shown="verdict")
    ] = None
    baseline: Annotated[
        bool,
        option(
            "Canary: compare with new replicas of the old version at equal weight.", "--baseline"
        ),
    ] = False
    weight: Annotated[
        int | None, option("A/B: the new version's share in percent.", min=1, max=99, shown="50")
    ] = None
    mirror_percent: Annotated[
        int | None, option("Shadow: share of requests to mirror.", min=1, max=100, shown="100")
    ] = None
    promotes: Annotated[bool, option("Shadow: promote after a good verdict.", "--promotes")] = False
    preview_s: Annotated[
        float | None,
        option(
            "Blue-green: duration in which the new version is reachable by its version path only.",
            min=0,
            shown="0",
        ),
    ] = None
    keep_s: Annotated[
        float | None,
        option(
            "Blue-green: how long the old version is kept after the switch.", min=0, shown="600"
        ),
    ] = None
    approval: Annotated[
        bool,
        option("Blue-green: wait for `headrace rollout promote` before the switch.", "--approval"),
    ] = False
    alpha: Annotated[
        float | None,
        option(
            "Maximum probability of rolling back a version that is as good as the old one.",
            shown="0.05",
        ),
    ] = None
    min_samples: Annotated[
        int | None,
        option("Requests per version and step before a verdict counts.", min=1, shown="200"),
    ] = None
    max_duration_s: Annotated[
        float | None,
        option("Maximum duration in seconds; then --on-timeout applies.", min=0, shown="3600"),
    ] = None
    on_timeout: Annotated[
        str | None,
        option(
            "Action at the end of --max-duration-s: rollback, pause or promote.",
            shown="rollback; pause if there were too few requests",
        ),
    ] = None

    def present(self, *names: str) -> dict[str, Any]:
        """Return the values of `names` that are given on the command line."""
        values = {name: getattr(self, name) for name in names}
        # By identity: 0 is a value.
        return {
            name: value
            for name, value in values.items()
            if value is not None and value is not False
        }


def rollout_plan(
    options: PlanOptions, document: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """Return the plan; None for the endpoint's own.

    Args:
        document: Plan from a file; options take precedence.

    Raises:
        typer.BadParameter: Options of different strategies are combined.
    """
    base = dict(document or {})
    common = options.present("alpha", "min_samples", "max_duration_s", "on_timeout")
    special = options.present(*_BELONGS_TO)
    if options.strategy is None and not base and not common and not special:
        return None
    owners = {name: _BELONGS_TO[name] for name in special}
    first = next(iter(owners.values()), Strategy.CANARY)
    strategy = str(options.strategy or base.get("strategy") or first)
    for name, owner in owners.items():
        if owner != strategy:
            msg = f"is an option of the strategy {owner}, not of {strategy}"
            raise typer.BadParameter(msg, param_hint=f"--{name.replace('_', '-')}")
    if strategy != base.get("strategy"):
        base = {}  # settings of another strategy do not apply
    plan = {**base, "strategy": strategy, **common}
    timing = {"steps", "pause_s", "until"}
    plan |= {name: value for name, value in special.items() if name not in timing}
    if timing & special.keys():
        plan["steps"] = _steps(options, base.get("steps"))
    return plan


def _steps(options: PlanOptions, in_file: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Return the steps: those of the file if the command line has no weights."""
    if options.steps is not None or not in_file:
        text = _DEFAULT_STEPS if options.steps is None else options.steps
        parts = [part.strip().removesuffix("%").strip() for part in text.split(",")]
        if not all(part.isdecimal() and 0 < int(part) <= _MAX_WEIGHT for part in parts):
            msg = f"{text!r} is not a list of percentages from 1 to 100, such as 5,25,50"
            raise typer.BadParameter(msg, param_hint="--steps")
        weights = map(int, parts)
        in_file = [{"weight": weight, "until": StepUntil.VERDICT.value} for weight in weights]
    changed: dict[str, Any] = options.present("pause_s")
    if options.until is not None:
        changed["until"] = None if options.until is StepUntil.NONE else options.until.value
    return [{**step, **changed} for step in in_file]


_REFRESH_S = 1.0
_UNREACHABLE_S = 60.0
"""Time limit for a control plane that does not respond."""


def _stored_model(
    model: str, endpoint: str, target: "CommandTarget", home: Path, *, allow_code: bool
) -> str:
    """Return the registry's version of a file or URI, pushed now; a reference as it is."""
    from headrace.cli.base.hub_folders import push_model
    from headrace.cli.base.sources import stored_from
    from headrace.core.model_uri import is_model_uri, parse_model_uri

    path = Path(model)
    if is_model_uri(model):
        store = model_store(target)
        stored = stored_from(model, endpoint, store, home=home, allow_code=allow_code)
        say(f"{parse_model_uri(model)} is {stored['reference']}")
    elif model and path.exists():
        with progress(f"checking and storing {path}"):
            pushed = Pushed(path=path, allow_code=allow_code)
            stored = push_model(model_store(target), endpoint, pushed, home)
        say(f"{path} is {stored['reference']}")
    else:
        return model
    return str(stored["reference"])


def start(
    endpoint: EndpointName,
    *,
    version: Annotated[
        str, option("Version number of the endpoint's current model, or the new version's name.")
    ] = "",
    model: Annotated[
        str,
        option(
            "NAME[:VERSION] of the registry, or a file or URI that is pushed first.", metavar="REF"
        ),
    ] = "",
    upstream: Annotated[str | None, option("URL of an external server.", metavar="URL")] = None,
    protocol: Annotated[
        str | None,
        option("Protocol of the upstream: v2, grpc, v1, torchserve, openai, http.", shown="v2"),
    ] = None,
    options: PlanOptions,
    file: Annotated[
        Path | None,
        file_option(
            "File with a plan as under `rollout` in the spec; options take precedence.",
            "--file",
            "-f",
        ),
    ] = None,
    wait: Annotated[
        bool, option("Wait until the rollout ends; exit status 1 unless promoted.", "--wait")
    ] = False,
    wait_s: WaitS = 86_400.0,
    allow_code: AllowCode = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Start a rollout of a new version, step by step, controlled by metrics.

    Headrace compares the new version with the old one while increasing its weight, and promotes it,
    rolls it back or waits. Without options, the endpoint's `rollout` in the spec applies, else a
    canary of 5, 25 and 50 percent.

    For example:

        headrace rollout start fraud --version 4 --wait

        headrace rollout start fraud --model ./new.onnx --strategy canary --steps 10,50 --pause-s 60

        headrace rollout start fraud --version 4 --strategy shadow --mirror-percent 10

        headrace rollout start fraud --upstream http://triton:8000 --strategy blue-green
    """
    _check_source(version=version, model=model, upstream=upstream, protocol=protocol)
    plan = rollout_plan(options, None if file is None else read_plan(file))
    target = plane.target()
    body: dict[str, Any] = {"version": version, "rollout": plan}
    model = _stored_model(model, endpoint, target, plane.home, allow_code=allow_code)
    if model:
        body["model"] = model
    if allow_code:
        body["allow_code"] = True
    if upstream is not None:
        body["upstream"] = {"url": upstream, **({"protocol": protocol} if protocol else {})}
    api = target.management()
    status = api.post(f"/api/v1/endpoints/{endpoint}/rollout", body, timeout_s=300.0)
    say(
        f"rollout {status['id']} ({status['strategy']}) of {endpoint}: "
        f"version {status['from_version']} to {status['to_version']}"
    )
    for note in status["notes"]:
        say(note)
    if wait:
        status = wait_for_rollout(api, status, timeout_s=wait_s)
    else:
        say(f"watch it with `headrace rollout status {endpoint} --watch`")
    if json:
        write_json(status)
    elif status["over"]:
        phase, after = status["phase"].replace("_", " "), span(status["duration_s"])
        say(f"{phase} after {after}: {status['reason']}")
    if wait and status["phase"] not in {"promoted", "reported"}:
        raise typer.Exit(FAILED)


def _check_source(*, version: str, model: str, upstream: str | None, protocol: str | None) -> None:
    if model and upstream is not None:
        raise typer.BadParameter("--model and --upstream exclude each other")
    if not version and not model and upstream is None:
        msg = "nothing to roll out: pass --version N, --model REF or --upstream URL"
        raise typer.BadParameter(msg)
    if version and upstream is None and not version.isdecimal():
        msg = f"'{version}' is not a version number; `headrace models list` lists the versions"
        raise typer.BadParameter(msg, param_hint="--version")
    if protocol is not None and upstream is None:
        msg = "needs --upstream"
        raise typer.BadParameter(msg, param_hint="--protocol")


def read_plan(file: Path) -> dict[str, Any]:
    """Return the plan in a file: the value of `rollout`, or the whole document.

    Raises:
        InvalidArgumentError: The file is not a plan.
    """
    try:
        document = read_yaml(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        msg = f"{file} is not UTF-8 text: {error}"
        raise InvalidArgumentError(msg) from None
    if document.mistakes:
        text = "\n  ".join(map(str, document.mistakes))
        msg = f"{file}: {text}"
        raise InvalidArgumentError(msg)
    value = document.value
    plan = value.get("rollout", value) if isinstance(value, dict) else value
    if not isinstance(plan, dict) or "strategy" not in plan:
        msg = f"{file} has no rollout plan; start it with, for example, `strategy: canary`"
        raise InvalidArgumentError(msg)
    return plan


def wait_for_rollout(
    api: "Management", status: dict[str, Any], *, timeout_s: float, every_s: float = _REFRESH_S
) -> dict[str, Any]:
    """Print each change of a rollout until it ends; return its last status.

    The command waits for an unreachable control plane: the rollout continues afterwards.

    Raises:
        DeadlineExceededError: The rollout did not end within `timeout_s`.
        UnavailableError: The control plane is away for too long.
    """
    deadline = time.monotonic() + timeout_s
    answered = time.monotonic()
    last_line = ""
    while not status["over"]:
        line = f"{status['phase'].replace('_', ' ')}{progress_of(status)}"
        if line != last_line:
            say(last_line := line)
        if time.monotonic() >= deadline:
            msg = f"rollout {status['id']} did not end within {timeout_s:g} s: {line}; it continues"
            raise DeadlineExceededError(msg)
        time.sleep(every_s)
        try:
            status = api.get(f"/api/v1/rollouts/{status['id']}")
            answered = time.monotonic()
        except UnavailableError:
            if time.monotonic() - answered > _UNREACHABLE_S:
                raise
    return status
