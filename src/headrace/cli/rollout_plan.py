"""What do the options of `rollout start` mean? A plan as it stands under `rollout` in the spec."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import typer


class Strategy(StrEnum):
    """How a new version takes over."""

    CANARY = "canary"
    BLUE_GREEN = "blue-green"
    AB = "ab"
    SHADOW = "shadow"


class StepUntil(StrEnum):
    """What each step of a canary waits for, besides its pause."""

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
_DEFAULT_STEPS: Final = (5, 25, 50)
_MAX_WEIGHT: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What stood on the command line; None and False for what did not."""

    strategy: Strategy | None = None
    steps: str | None = None
    pause_s: float | None = None
    until: StepUntil | None = None
    baseline: bool = False
    weight: int | None = None
    mirror_percent: int | None = None
    promotes: bool = False
    preview_s: float | None = None
    keep_s: float | None = None
    approval: bool = False
    alpha: float | None = None
    min_samples: int | None = None
    max_duration_s: float | None = None
    on_timeout: str | None = None

    def given(self, *names: str) -> dict[str, Any]:
        """Those of `names` that stood there."""
        found = {name: getattr(self, name) for name in names}
        return {
            name: value for name, value in found.items() if value is not None and value is not False
        }


def rollout_plan(
    options: PlanOptions, document: Mapping[str, Any] | None = None
) -> dict[str, Any] | None:
    """The plan; None leaves it to the endpoint.

    Args:
        document: A plan from a file; what stands on the command line wins over it.

    Raises:
        typer.BadParameter: Options of different strategies stand together.
    """
    base = dict(document or {})
    common = options.given("alpha", "min_samples", "max_duration_s", "on_timeout")
    special = options.given(*_BELONGS_TO)
    if options.strategy is None and not base and not common and not special:
        return None
    strategy = _strategy(options.strategy, base.get("strategy"), special)
    if strategy != base.get("strategy"):
        base = {}  # another strategy's settings mean nothing here
    plan = {**base, "strategy": strategy, **common}
    timing = {"steps", "pause_s", "until"}
    plan |= {name: value for name, value in special.items() if name not in timing}
    if timing & special.keys():
        plan["steps"] = _steps(options, base.get("steps"))
    return plan


def _strategy(named: Strategy | None, in_file: str | None, special: Mapping[str, Any]) -> str:
    wanted = {name: _BELONGS_TO[name] for name in special}
    chosen = named or in_file or next(iter(wanted.values()), Strategy.CANARY)
    for name, owner in wanted.items():
        if owner != chosen:
            msg = f"belongs to the strategy {owner}, and this is {chosen}"
            raise typer.BadParameter(msg, param_hint=f"--{name.replace('_', '-')}")
    return str(chosen)


def _steps(options: PlanOptions, in_file: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """The steps: those of the file where the command line names no weights."""
    if options.steps is not None or not in_file:
        weights = _DEFAULT_STEPS if options.steps is None else _weights(options.steps)
        in_file = [{"weight": weight, "until": StepUntil.VERDICT.value} for weight in weights]
    changed: dict[str, Any] = options.given("pause_s")
    if options.until is not None:
        changed["until"] = None if options.until is StepUntil.NONE else options.until.value
    return [{**step, **changed} for step in in_file]


def _weights(text: str) -> tuple[int, ...]:
    parts = [part.strip().removesuffix("%").strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= _MAX_WEIGHT for part in parts):
        msg = f"{text!r} is no list of percentages from 1 to 100, such as 5,25,50"
        raise typer.BadParameter(msg, param_hint="--steps")
    return tuple(map(int, parts))
