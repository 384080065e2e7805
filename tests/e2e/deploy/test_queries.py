"""Prometheus itself says what the exported queries tell of a new version."""

from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from headrace.core.spec.rollout import CanarySpec
from headrace.deploy.argo_rollouts import checks_of
from tests.e2e.debian import NoToolError, find_tool, run_tool
from tests.unit.deploy.specs import facts_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_GOOD: Final = {"broken": 0, "refused": 0, "slow": 0}
_OPPOSITE: Final = {"broken": 600, "refused": 0, "slow": 600}
_PODS: Final = 'namespace="models",pod=~"headrace-fraud.*"'
_FIRES: Final = {
    "nothing": (_GOOD, set()),
    "errors": ({**_GOOD, "broken": 6}, {"errors", "errors-limit"}),
    "rejections": ({**_GOOD, "refused": 6}, {"rejections"}),
    "latency": ({**_GOOD, "slow": 30}, {"latency", "latency-limit"}),
}
"""What a version does of 60 requests a minute, and which checks are above their limits then."""


@pytest.mark.parametrize("case", list(_FIRES))
@pytest.mark.parametrize("per_minute", [60, 1])
def test_a_check_is_above_its_limit_when_the_new_version_is_worse(
    case: str, per_minute: int, tmp_path: Path
) -> None:
    try:
        find_tool("promtool")
    except NoToolError as error:
        pytest.skip(str(error))
    does, wanted = _FIRES[case]
    if per_minute == 1:  # too few to say anything, however bad
        does, wanted = {key: min(value, 1) for key, value in does.items()}, set()
    plan = {
        "strategy": "canary",
        "min_samples": 100,
        "metrics": {"errors": {"max_ratio": 0.05}, "latency": {"max_s": 0.2}},
    }
    (endpoint,) = facts_of({"rollout": plan}).endpoints
    assert isinstance(endpoint.spec.rollout, CanarySpec)
    checks = list(checks_of(endpoint, endpoint.newest, endpoint.spec.rollout, _PODS))
    rules = [
        {"alert": check.name, "expr": f"({check.query}) > {check.max_value:g}"} for check in checks
    ]
    tests = [
        {
            "interval": "1m",
            "input_series": [
                *_series("1", 600, _GOOD),
                *_series("2", per_minute, does),
                # Another namespace's rollout fails where this one does not, and has requests.
                *_series("2", 600, _OPPOSITE if does == _GOOD else _GOOD, namespace="other"),
            ],
            "alert_rule_test": [
                {
                    "eval_time": "10m",
                    "alertname": check.name,
                    "exp_alerts": [{}] if check.name in wanted else [],
                }
                for check in checks
            ],
        }
    ]
    _write(tmp_path / "rules.yml", {"groups": [{"name": "checks", "rules": rules}]})
    _write(
        tmp_path / "test.yml",
        {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests},
    )

    status, said = run_tool("promtool", "test", "rules", tmp_path / "test.yml")

    assert len(checks) == 5
    assert status == 0, said


def _series(
    version: str, per_minute: int, does: dict[str, int], namespace: str = "models"
) -> list[dict[str, str]]:
    labels = f'namespace="{namespace}",pod="headrace-fraud-5f-x",model="fraud",version="{version}"'
    good = per_minute - does["broken"] - does["refused"]
    counts = {
        f"nv_inference_request_success{{{labels}}}": good,
        f'nv_inference_request_failure{{{labels},reason="BACKEND"}}': does["broken"],
        f'nv_inference_request_failure{{{labels},reason="OTHER"}}': does["refused"],
        f'headrace_request_seconds_bucket{{{labels},le="0.1"}}': per_minute - does["slow"],
        f'headrace_request_seconds_bucket{{{labels},le="1"}}': per_minute,
        f'headrace_request_seconds_bucket{{{labels},le="+Inf"}}': per_minute,
    }
    return [{"series": name, "values": f"0+{count}x15"} for name, count in counts.items()]


def _write(file: Path, document: dict[str, Any]) -> None:
    with file.open("w") as stream:
        YAML(typ="safe").dump(document, stream)
