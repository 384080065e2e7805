"""What callers were promised, and how a new version takes over."""

from collections.abc import Iterator
from typing import Final

from headrace.advise.check import Check, Hit, endpoints
from headrace.advise.facts import Facts, Need, Severity
from headrace.core.spec import EndpointSpec
from headrace.core.spec_rollout import MetricsSpec

_HUGE_RATIO: Final = 0.1
_HUGE_LATENCY_RATIO: Final = 3.0
_SCRAPED_WITHIN_S: Final = 900.0
_CANARY: Final = """\
rollout:
  strategy: canary
  steps:
    - {weight: 5, until: verdict}
    - {weight: 50, until: verdict}"""


def _no_slo(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if not _has_slo(endpoint):
            yield Hit(where=f"{place}.slo", seen=f"endpoint '{endpoint.name}' has no `slo`")


def _has_slo(endpoint: EndpointSpec) -> bool:
    slo = endpoint.slo
    return slo is not None and (slo.latency_s is not None or slo.availability is not None)


def _single(facts: Facts) -> Iterator[Hit]:
    copies = {pool.name: pool.replicas for pool in facts.spec.pools}
    for place, endpoint in endpoints(facts.spec):
        if not _has_slo(endpoint) or endpoint.autoscale is not None:
            continue
        for j, version in enumerate(endpoint.split()):
            count = copies.get(endpoint.pool or "", version.replicas)
            if version.upstream is not None or not version.weight or count > 1:
                continue
            where = f"{place}.versions[{j}].replicas" if endpoint.versions else f"{place}.replicas"
            seen = f"endpoint '{endpoint.name}' has an `slo` and one copy"
            yield Hit(where=where, seen=seen)


def _no_headroom(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        scale = endpoint.autoscale
        if scale is None:
            continue
        where = f"{place}.autoscale"
        if scale.min_replicas == scale.max_replicas:
            seen = f"endpoint '{endpoint.name}' has {scale.max_replicas} copies at least and most"
            fix = f"max_replicas: {scale.max_replicas * 2}"
            yield Hit(where=f"{where}.max_replicas", seen=seen, fix=fix)


def _cold_start(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        scale, slo = endpoint.autoscale, endpoint.slo
        if scale is None or slo is None or slo.latency_s is None or scale.min_replicas > 0:
            continue
        yield Hit(
            where=f"{place}.autoscale.min_replicas",
            seen=f"endpoint '{endpoint.name}' scales to zero and promises {slo.latency_s:g} s",
        )


def _no_rollout(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if endpoint.rollout is None:
            seen = f"endpoint '{endpoint.name}' has no `rollout`"
            yield Hit(where=f"{place}.rollout", seen=seen, fix=_CANARY)


def _blind_rollout(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if endpoint.rollout is None:
            continue
        metrics = endpoint.rollout.metrics
        # Crashes alone say nothing of what a version answers.
        judged = set(MetricsSpec.__struct_fields__) - {"crashes"}
        if all(getattr(metrics, name) is None for name in judged):
            seen = f"endpoint '{endpoint.name}' has a rollout without a metric"
            yield Hit(where=f"{place}.rollout.metrics", seen=seen)


def _wide_margins(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if endpoint.rollout is None:
            continue
        metrics = endpoint.rollout.metrics
        for name in ("errors", "rejections"):
            metric = getattr(metrics, name)
            if metric is not None and metric.margin > _HUGE_RATIO:
                seen = f"endpoint '{endpoint.name}': a share of {metric.margin:g} more is tolerated"
                yield Hit(where=f"{place}.rollout.metrics.{name}.margin", seen=seen)
        if metrics.latency is not None and metrics.latency.margin_ratio > _HUGE_LATENCY_RATIO:
            factor = metrics.latency.margin_ratio
            seen = f"endpoint '{endpoint.name}': {factor:g} times the latency is tolerated"
            yield Hit(where=f"{place}.rollout.metrics.latency.margin_ratio", seen=seen)


def _promotes_late(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if endpoint.rollout is not None and endpoint.rollout.on_timeout == "promote":
            seen = f"endpoint '{endpoint.name}' has `on_timeout: promote`"
            yield Hit(where=f"{place}.rollout.on_timeout", seen=seen)


def _no_access_log(facts: Facts) -> Iterator[Hit]:
    gateway = facts.spec.gateway
    if not gateway.access_log:
        yield Hit(where="gateway.access_log", seen="`access_log: false`")
    elif gateway.request_log.mode == "off":
        yield Hit(where="gateway.request_log.mode", seen="`mode: off`")


def _not_watched(facts: Facts) -> Iterator[Hit]:
    if facts.scraped_s_ago is None:
        yield Hit(where="metrics", seen="nobody has read /metrics since the start")
    elif facts.scraped_s_ago > _SCRAPED_WITHIN_S:
        yield Hit(where="metrics", seen=f"/metrics was last read {facts.scraped_s_ago:.0f} s ago")


CHECKS: Final = (
    Check(
        id="HR301",
        title="An endpoint promises nothing",
        severity=Severity.LOW,
        why="Without an SLO nobody can say whether it is well; copies, admission and verdicts "
        "follow from it.",
        fix="slo: {latency_s: 0.1, availability: 0.999}",
        needs=(Need.SPEC,),
        find=_no_slo,
    ),
    Check(
        id="HR302",
        title="A promise rests on one copy",
        severity=Severity.MEDIUM,
        why="While it starts again after a crash, every request fails.",
        fix="replicas: 2",
        needs=(Need.SPEC,),
        find=_single,
    ),
    Check(
        id="HR303",
        title="The autoscaler has no room",
        severity=Severity.MEDIUM,
        why="With equal bounds nothing is scaled, and load beyond them is refused.",
        fix="Set `max_replicas` above `min_replicas`.",
        needs=(Need.SPEC,),
        find=_no_headroom,
    ),
    Check(
        id="HR304",
        title="A promised latency is broken by the first request after a pause",
        severity=Severity.LOW,
        why="Starting a copy takes seconds.",
        fix="min_replicas: 1",
        needs=(Need.SPEC,),
        find=_cold_start,
    ),
    Check(
        id="HR305",
        title="New versions take over all at once",
        severity=Severity.MEDIUM,
        why="A model that loads and answers nonsense reaches every caller.",
        fix="Give the endpoint a `rollout`.",
        needs=(Need.SPEC,),
        find=_no_rollout,
    ),
    Check(
        id="HR306",
        title="A rollout looks at nothing",
        severity=Severity.MEDIUM,
        why="Without a metric every version is as good as the old one.",
        fix="metrics: {errors: {margin: 0.01}, latency: {margin_ratio: 1.25}}",
        needs=(Need.SPEC,),
        find=_blind_rollout,
    ),
    Check(
        id="HR307",
        title="A rollout tolerates almost everything",
        severity=Severity.LOW,
        why="A version that fails every tenth request would be promoted.",
        fix="Narrow the margin; `headrace rollout simulate` says what that costs in time.",
        needs=(Need.SPEC,),
        find=_wide_margins,
    ),
    Check(
        id="HR308",
        title="A version is promoted for want of evidence",
        severity=Severity.MEDIUM,
        why="When too few requests come to judge it, it takes over unjudged.",
        fix="on_timeout: rollback",
        needs=(Need.SPEC,),
        find=_promotes_late,
    ),
    Check(
        id="HR309",
        title="Requests leave no trace",
        severity=Severity.MEDIUM,
        why="After an incident nobody can say who called, when, and what was answered.",
        fix="access_log: true",
        needs=(Need.SPEC,),
        find=_no_access_log,
    ),
    Check(
        id="HR310",
        title="Nobody watches the metrics",
        severity=Severity.MEDIUM,
        why="An outage is then found by callers.",
        fix="Let Prometheus read the metrics address; `headrace status` says which it is.",
        needs=(Need.SCRAPES,),
        find=_not_watched,
    ),
)
