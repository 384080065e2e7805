"""Of what are tests of rules made? Series that are bad, then good, and what is expected when."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from headrace.monitor import promql

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Counter:
    """A series that grows by `bad` a step, later by `good`."""

    name: str
    bad: float
    good: float

    def values(self, bad_steps: int, good_steps: int) -> str:
        """As `promtool` reads it."""
        turn = self.bad * bad_steps
        return f"0+{self.bad:g}x{bad_steps} {turn + self.good:g}+{self.good:g}x{good_steps}"


@dataclass(frozen=True, slots=True)
class Gauge:
    """A series that is `bad`, later `good`."""

    name: str
    bad: float
    good: float

    def values(self, bad_steps: int, good_steps: int) -> str:
        """As `promtool` reads it."""
        return f"{self.bad:g}x{bad_steps} {self.good:g}x{good_steps}"


Series = Counter | Gauge


def expectation(alert: str, labels: str, *, at_s: float, firing: int) -> Document:
    """How often an alert fires then.

    Args:
        labels: Of whom, as PromQL has them; empty for anybody.
    """
    who = f",{labels}" if labels else ""
    alerts = f'ALERTS{{alertname="{alert}",alertstate="firing"{who}}}'
    return {
        "expr": f"count({alerts}) or vector(0)",
        "eval_time": promql.duration(at_s),
        "exp_samples": [{"labels": "{}", "value": firing}],
    }


def rule_test(
    alert: str,
    series: Iterable[Series],
    expected: list[Document],
    *,
    step_s: float,
    bad_steps: int,
    good_steps: int,
) -> Document:
    """One test, as `promtool` reads it."""
    return {
        "name": alert,
        "interval": promql.duration(step_s),
        "input_series": [
            {"series": one.name, "values": one.values(bad_steps, good_steps)} for one in series
        ],
        "promql_expr_test": expected,
    }
