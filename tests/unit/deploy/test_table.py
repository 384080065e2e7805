"""The table says of every field of a spec what becomes of it, and exports do as it says."""

import re
from pathlib import Path
from typing import Any, Final

import pytest

from headrace.core.spec.parse import SystemSpec
from headrace.deploy import TABLE, ExportOutcome, ExportTarget, FeatureSupport, NotExpressibleError
from headrace.deploy.features import SpecFeature, explicit_settings, feature_of
from tests.unit.deploy.specs import EXPORTERS, facts_of, known_fields, spec_of, split

_PAGE: Final = Path(__file__).parents[3] / "docs" / "how-to" / "export.md"
_CONTAINERS: Final = {"gateway", "auth", "endpoints", "endpoints[].limits", "kubernetes"}
"""Parts that say nothing by themselves: all that is in them has a row."""
_JWT: Final = {"name": "corp", "issuer": "https://id.test", "audiences": ["models"]}
_JWT_URL: Final = {**_JWT, "jwks_url": "https://id.test/keys"}
_CANARY: Final = {"strategy": "canary"}
_UPSTREAM: Final = {"url": "http://10.1.1.1:9000"}
_TLS: Final = {"certificate_file": "/tls/chain.pem", "key_file": "/tls/key.pem"}
_VIEWS: Final = {"strategy": "canary", "metrics": {"reward": {}}}


def _e(**endpoint: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    return {"endpoint": endpoint}


def _by_hpa(**scaling: Any) -> dict[str, Any]:  # noqa: ANN401  # as a file has it
    scale = {"target_in_flight": 4, **scaling}
    return {**_e(autoscale=scale), "kubernetes": {"autoscaler": "hpa"}}


_EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "Weights of a split": _e(versions=split(90, 10)),
    "Another's server": _e(upstream=_UPSTREAM),
    "TLS to another's server": _e(
        upstream={"url": "https://m.test", "tls": {"ca_file": "/tls/ca.pem"}}
    ),
    "API key of another's server": _e(
        upstream={"url": "https://m.test", "api_key_file": "/keys/m"}
    ),
    "Health and bounds of another's server": _e(upstream={**_UPSTREAM, "max_requests": 7}),
    "Scaling: bounds and target": _e(autoscale={"max_replicas": 9}),
    "Scaling to zero": _e(autoscale={"min_replicas": 0}),
    "Scaling: windows, panic, idle time": _by_hpa(stable_window_s=30),
    "Scaling: delay before fewer": _e(autoscale={"scale_down_delay_s": 30}),
    "Scaling: step sizes": _e(autoscale={"max_scale_up_ratio": 2}),
    "Scaling: waits, schedules, holding": _by_hpa(max_held=7),
    "Rollout: canary, blue-green": _e(rollout=_CANARY),
    "Rollout: A/B": _e(rollout={"strategy": "ab", "weight": 40}),
    "Rollout: shadow": _e(rollout={"strategy": "shadow", "mirror_percent": 40}),
    "Rollout: fresh copies of the old version": _e(rollout={**_CANARY, "baseline": True}),
    "Rollout: level of the test": _e(rollout={**_CANARY, "alpha": 0.01}),
    "Rollout: smallest sample": _e(rollout={**_CANARY, "min_samples": 7}),
    "Rollout: warm-up": _e(rollout={**_CANARY, "warmup_s": 7}),
    "Rollout: longest time, and what then": _e(rollout={**_CANARY, "max_duration_s": 7}),
    "Rollout: time to become ready": _e(rollout={**_CANARY, "ready_timeout_s": 7}),
    "Rollout: the old version is kept": _e(rollout={"strategy": "blue-green", "keep_s": 7}),
    "Rollout: errors, rejections, latency": _e(
        rollout={**_CANARY, "metrics": {"latency": {"max_s": 1}}}
    ),
    "Rollout: answers, tokens, reward": _e(rollout=_VIEWS),
    "Sticky callers: header, cookie": _e(sticky={"header": "x-user-id"}),
    "Sticky callers: a token's claim": _e(sticky={"claim": "sub"}),
    "Pause": _e(paused=True),
    "Fallback": {
        **_e(fallback="spare"),
        "others": [{"name": "spare", "model": "fraud:1", "access": "public"}],
    },
    "Drift, features, payload log": _e(payload_log={"sample_ratio": 0.5}),
    "Pools": {"endpoint": {"pool": "small"}, "pools": [{"name": "small"}]},
    "Aliases in OpenAI's API": _e(aliases=[{"name": "gpt"}]),
    "Access": _e(access=["key", "certificate"]),
    "Tokens: issuer, audience, keys": {"auth": {"jwt": [_JWT_URL]}},
    "Tokens: audience": {"auth": {"jwt": [_JWT_URL]}},
    "Tokens: keys from a URL": {"auth": {"jwt": [_JWT_URL]}},
    "Tokens: clocks, cache, claims": {"auth": {"jwt": [{**_JWT_URL, "clock_skew_s": 9}]}},
    "Client certificates": {"auth": {"certificates": [{"name": "bank", "dns": "*.bank.test"}]}},
    "Tiers": {**_e(access=["key"]), "tiers": [{"name": "gold", "requests_per_s": 9}]},
    "Tiers: rows, tokens, concurrency, days": {
        **_e(access=["key"]),
        "tiers": [{"name": "gold", "rows_per_s": 9}],
    },
    "Limits: requests per second": _e(limits={"requests_per_s": 9}),
    "Limits: burst": _e(limits={"requests_per_s": 9, "burst": 20}),
    "Limits: requests per day": _e(limits={"requests_per_day": 9}),
    "Limits: rows, concurrency, tokens": _e(limits={"tokens_per_minute": 9000}),
    "Limits per caller": _e(limits={"per_caller": {"requests_per_s": 9}}),
    "Limits per caller: burst": _e(limits={"per_caller": {"requests_per_s": 9, "burst": 20}}),
    "Size of a request": _e(limits={"max_body_bytes": 5000}),
    "The gateway's client certificates": {
        "gateway": {"tls": {**_TLS, "client_ca_file": "/tls/clients.pem"}}
    },
    "Limits that gateways share": {"gateway": {"shared_limits": True}},
    "Signatures": {"security": {"require_signature": True, "trusted_keys": ["/keys/a.pem"]}},
    "Traces": {"tracing": {"collector": "http://127.0.0.1:4318"}},
    "Pods: volumes, shared memory, patch": {"kubernetes": {"shm_size": "1Gi"}},
    "Pods: who scales them": {
        "kubernetes": {"autoscaler": "keda", "prometheus_url": "http://p:9090"}
    },
}
"""For each row that some target refuses: a spec that says so."""


def _refusals() -> list[Any]:
    return [
        pytest.param(feature, target, id=f"{feature.title}-{target.value}")
        for feature in TABLE
        for target, cell in feature.cells.items()
        if cell.outcome is ExportOutcome.REFUSED
    ]


_each_refusal: Final = pytest.mark.parametrize(("feature", "target"), _refusals())


def test_every_field_of_a_spec_has_a_fate_in_every_target() -> None:
    lost = [f for f in known_fields(SystemSpec) if feature_of(TABLE, f) is None]

    assert set(lost) == _CONTAINERS, "add the field to a row of headrace.deploy.table"
    assert all(set(feature.cells) == set(ExportTarget) for feature in TABLE)


def test_the_table_names_no_field_that_a_spec_does_not_have() -> None:
    known = set(known_fields(SystemSpec))

    assert [f for feature in TABLE for f in feature.fields if f not in known] == []


@pytest.mark.parametrize("feature", TABLE, ids=lambda feature: feature.title)
def test_whatever_is_not_simply_expressed_says_why(feature: SpecFeature) -> None:
    for cell in feature.cells.values():
        assert cell.note or cell.outcome is ExportOutcome.EXPRESSED
        assert bool(cell.remedy) == (cell.outcome is ExportOutcome.REFUSED)


@_each_refusal
def test_every_refusal_is_told_by_its_place_and_a_way_out(
    feature: SpecFeature, target: ExportTarget
) -> None:
    example = _EXAMPLES[feature.title]
    spec = spec_of(example.get("endpoint"), **{k: v for k, v in example.items() if k != "endpoint"})
    cell = feature.cells[target]
    mine = {
        s.field
        for s in explicit_settings(spec)
        if (of := feature_of(TABLE, s.field)) and of[0] == feature
    }

    with pytest.raises(NotExpressibleError) as caught:
        EXPORTERS[target](_facts(example))

    assert mine, "the example has a setting of this row"
    told = [loss for loss in caught.value.losses if loss.why == cell.note]
    assert told, str(caught.value)
    assert all(loss.remedy == cell.remedy for loss in told)
    assert str(caught.value).startswith(f"{target.value} cannot express")
    assert f"--allow-loss {told[0].field}" in str(caught.value)


@_each_refusal
def test_what_is_refused_may_be_left_out_by_leave(
    feature: SpecFeature, target: ExportTarget
) -> None:
    example = _EXAMPLES[feature.title]
    with pytest.raises(NotExpressibleError) as caught:
        EXPORTERS[target](_facts(example))
    fields = tuple(dict.fromkeys(loss.field for loss in caught.value.losses))

    export = EXPORTERS[target](_facts(example, allowed=fields))

    # Without the server that it leads to there is nothing left of a route.
    leads_nowhere = target is ExportTarget.GATEWAY_API and "endpoints[].upstream" in fields
    assert bool(export.documents) != leads_nowhere
    for loss in caught.value.losses:
        (told,) = [n for n in export.notes if n.endswith(f": left out, {target.value} {loss.why}")]
        assert loss.location in told.partition(": ")[0].split(", ")


@pytest.mark.parametrize("target", list(ExportTarget))
def test_a_plain_spec_loses_nothing_anywhere(target: ExportTarget) -> None:
    export = EXPORTERS[target](facts_of())

    assert not [note for note in export.notes if "left out" in note]


def test_the_page_shows_the_table() -> None:
    rows = re.findall(
        r"^\| (.+?) \| (.+) \|$", _PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    shown = {title: tuple(cell.strip() for cell in cells.split(" | ")) for title, cells in rows}

    for feature in TABLE:
        expected = tuple(_word(feature.cells[target]) for target in ExportTarget)
        assert shown.get(feature.title) == expected, feature.title


def _word(cell: FeatureSupport) -> str:
    match cell.outcome:
        case ExportOutcome.KEPT:
            return "-"
        case ExportOutcome.REFUSED if cell.rest:
            return f"no: {cell.rest}"
        case outcome:
            return outcome.value


def _facts(example: dict[str, Any], allowed: tuple[str, ...] = ()) -> Any:  # noqa: ANN401  # Facts
    top = {key: value for key, value in example.items() if key != "endpoint"}
    return facts_of(example.get("endpoint"), allowed=allowed, **top)
