"""Checks of a spec: limits, files, SLOs and rollouts."""

import re
from collections.abc import Iterator
from typing import Final

from headrace.advise.audit.check import Hit, check, endpoints, files_of, mode_hit
from headrace.advise.audit.facts import AuditFacts, FindingSeverity, Need
from headrace.core.spec.access import LimitSpec
from headrace.core.spec.parse import EndpointSpec
from headrace.core.spec.rollout import MetricsSpec

_LARGE_BODY_BYTES: Final = 256 << 20
_LONG_QUEUE: Final = 10_000
_KINDS: Final = ("certificate", "key", "ca", "jwks", "trusted", "model")
_NOTHING: Final = LimitSpec()
_HUGE_RATIO: Final = 0.1
_HUGE_LATENCY_RATIO: Final = 3.0
_SCRAPED_WITHIN_S: Final = 900.0
_CANARY: Final = """\
rollout:
  strategy: canary
  steps:
    - {weight: 5, until: verdict}
    - {weight: 50, until: verdict}"""
_LIMITS: Final = """\
limits:
  requests_per_s: 200
  max_concurrent: 64
  per_caller: {requests_per_s: 50}"""


@check(
    "HR201",
    FindingSeverity.MEDIUM,
    "An endpoint has no request limit",
    reason="A single caller in a loop can starve all others.",
    fix="Set `limits`.",
)
def _none(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        limits = endpoint.limits
        if limits.total == _NOTHING and limits.per_caller == _NOTHING:
            yield Hit(
                f"{location}.limits", f"endpoint '{endpoint.name}' has no `limits`", fix=_LIMITS
            )


@check(
    "HR202",
    FindingSeverity.LOW,
    "One caller can use up an endpoint's limit",
    reason="The limit then protects the model, but not the other callers.",
    fix="per_caller: {requests_per_s: 50}",
)
def _no_caller_limit(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        limits = endpoint.limits
        if limits.total != _NOTHING and limits.per_caller == _NOTHING:
            yield Hit(
                f"{location}.limits.per_caller",
                f"endpoint '{endpoint.name}' limits all callers together only",
            )


@check(
    "HR203",
    FindingSeverity.MEDIUM,
    "Requests may be very large",
    reason="Gateway and replica hold each request in memory: a few at once exhaust it.",
    fix="max_body_bytes: 67108864",
)
def _large_body(facts: AuditFacts) -> Iterator[Hit]:
    locations = [("gateway.max_body_bytes", facts.spec.gateway.max_body_bytes)]
    locations += [
        (f"{location}.limits.max_body_bytes", endpoint.limits.max_body_bytes or 0)
        for location, endpoint in endpoints(facts.spec)
    ]
    for source, size in locations:
        if size > _LARGE_BODY_BYTES:
            yield Hit(source, f"{size} bytes ({size / (1 << 20):.0f} MiB)")


@check(
    "HR204",
    FindingSeverity.MEDIUM,
    "Requests may wait indefinitely",
    reason="Hung requests keep their slots until none is free.",
    fix="timeout_s: 30",
)
def _no_timeout(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if endpoint.timeout_s is None:
            yield Hit(f"{location}.timeout_s", f"endpoint '{endpoint.name}' has `timeout_s: null`")


@check(
    "HR205",
    FindingSeverity.MEDIUM,
    "A queue is practically unbounded",
    reason="Under overload all callers wait for late answers instead of getting a 429.",
    fix="max_queue_size: 128",
)
def _long_queue(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        size = endpoint.batching.max_queue_size
        if size > _LONG_QUEUE:
            yield Hit(
                f"{location}.batching.max_queue_size",
                f"endpoint '{endpoint.name}' lets {size} requests wait in each replica",
            )


_WRITES: Final = 2
_SECRETS: Final = (
    ("a private key", re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")),
    ("a key or token of Headrace", re.compile(r"\bhr[a-z]?_[A-Za-z0-9]{4,}_[A-Za-z0-9_-]{16,}")),
    ("a token", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),
    ("an AWS access key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    ("a Slack token", re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}")),
    ("an API key", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
    ("a password in a URL", re.compile(r"://[^\s/:@'\"]{1,64}:[^\s/@'\"$]{1,128}@")),
    (
        "a password",
        re.compile(
            r"(?i)(?:pass(?:word|wd)?|secret|token|api[_-]?key|access[_-]?key)['\"]?\s*[:=]\s*"
            r"['\"]?(?![$/<.*{\[~]|null\b|true\b|false\b)[^\s'\",}\]#]{6,}"
        ),
    ),
)
"""Most specific first; a line is reported once."""


@check(
    "HR701",
    FindingSeverity.CRITICAL,
    "The spec contains a secret",
    reason="Spec files are committed, copied and returned by the API, including comments.",
    fix="Remove it, rotate it wherever it is used, and refer to a file or ${VARIABLE} instead.",
)
def _secrets(facts: AuditFacts) -> Iterator[Hit]:
    for piece in facts.texts:
        description = next(
            (description for description, pattern in _SECRETS if pattern.search(piece.text)), None
        )
        if description is not None:
            yield Hit(piece.where, f"looks like {description} (not shown)", line=piece.line)


@check(
    "HR702",
    FindingSeverity.HIGH,
    "The spec refers to a missing file",
    reason="The feature that needs the file does not start.",
    fix="Correct the path, or create the file.",
    needs=(Need.SPEC, Need.FILES),
)
def _dangling(facts: AuditFacts) -> Iterator[Hit]:
    for named, file in files_of(facts, *_KINDS):
        if not file.exists:
            yield Hit(named.location, f"{named.path} does not exist")


@check(
    "HR703",
    FindingSeverity.HIGH,
    "A file has an unexpected format",
    reason="The gateway refuses it, and keeps the previous one.",
    fix="Replace the file.",
    needs=(Need.SPEC, Need.FILES),
)
def _unreadable(facts: AuditFacts) -> Iterator[Hit]:
    for named, file in files_of(facts, *_KINDS):
        if file.exists and file.problem:
            yield Hit(named.location, f"{named.path} {file.problem}")


@check(
    "HR704",
    FindingSeverity.MEDIUM,
    "The spec file is writable by other users",
    reason="The next apply applies their changes.",
    fix="chmod go-w the file.",
    needs=(Need.SPEC, Need.FILES),
)
def _writable(facts: AuditFacts) -> Iterator[Hit]:
    file = facts.spec_file
    if file is not None and file.opens(_WRITES):
        yield mode_hit(file, location=file.path, fix=f"chmod go-w {file.path}")


@check(
    "HR301",
    FindingSeverity.LOW,
    "An endpoint has no SLO",
    reason="Alerts, replica counts, admission and verdicts are derived from the SLO.",
    fix="slo: {latency_s: 0.1, availability: 0.999}",
)
def _no_slo(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if not _has_slo(endpoint):
            yield Hit(f"{location}.slo", f"endpoint '{endpoint.name}' has no `slo`")


def _has_slo(endpoint: EndpointSpec) -> bool:
    slo = endpoint.slo
    return slo is not None and (slo.latency_s is not None or slo.availability is not None)


@check(
    "HR302",
    FindingSeverity.MEDIUM,
    "An SLO depends on a single replica",
    reason="While it restarts after a crash, every request fails.",
    fix="replicas: 2",
)
def _single(facts: AuditFacts) -> Iterator[Hit]:
    copies = {pool.name: pool.replicas for pool in facts.spec.pools}
    for location, endpoint in endpoints(facts.spec):
        if not _has_slo(endpoint) or endpoint.autoscale is not None:
            continue
        for j, version in enumerate(endpoint.split()):
            count = copies.get(endpoint.pool or "", version.replicas)
            if version.upstream is not None or not version.weight or count > 1:
                continue
            source = (
                f"{location}.versions[{j}].replicas"
                if endpoint.versions
                else f"{location}.replicas"
            )
            yield Hit(source, f"endpoint '{endpoint.name}' has an `slo` and one copy")


@check(
    "HR303",
    FindingSeverity.MEDIUM,
    "The autoscaler has no range",
    reason="With equal bounds the autoscaler changes nothing, and load beyond them is refused.",
    fix="Set `max_replicas` above `min_replicas`.",
)
def _no_headroom(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        scale = endpoint.autoscale
        if scale is None:
            continue
        source = f"{location}.autoscale"
        if scale.min_replicas == scale.max_replicas:
            evidence = (
                f"endpoint '{endpoint.name}' has {scale.max_replicas} copies at least and most"
            )
            yield Hit(
                f"{source}.max_replicas", evidence, fix=f"max_replicas: {scale.max_replicas * 2}"
            )


@check(
    "HR304",
    FindingSeverity.LOW,
    "The first request after a pause violates the latency SLO",
    reason="Starting a replica takes seconds.",
    fix="min_replicas: 1",
)
def _cold_start(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        scale, slo = endpoint.autoscale, endpoint.slo
        if scale is None or slo is None or slo.latency_s is None or scale.min_replicas > 0:
            continue
        yield Hit(
            f"{location}.autoscale.min_replicas",
            f"endpoint '{endpoint.name}' scales to zero and promises {slo.latency_s:g} s",
        )


@check(
    "HR305",
    FindingSeverity.MEDIUM,
    "New versions get all traffic at once",
    reason="A model that loads but returns wrong outputs reaches every caller.",
    fix="Set a `rollout` at the endpoint.",
)
def _no_rollout(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if endpoint.rollout is None:
            evidence = f"endpoint '{endpoint.name}' has no `rollout`"
            yield Hit(f"{location}.rollout", evidence, fix=_CANARY)


@check(
    "HR306",
    FindingSeverity.MEDIUM,
    "A rollout checks no metric",
    reason="Without a metric every version passes.",
    fix="metrics: {errors: {margin: 0.01}, latency: {margin_ratio: 1.25}}",
)
def _blind_rollout(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if endpoint.rollout is None:
            continue
        metrics = endpoint.rollout.metrics
        # Crashes alone do not measure a version's responses.
        judged = set(MetricsSpec.__struct_fields__) - {"crashes"}
        if all(getattr(metrics, name) is None for name in judged):
            evidence = f"endpoint '{endpoint.name}' has a rollout without a metric"
            yield Hit(f"{location}.rollout.metrics", evidence)


@check(
    "HR307",
    FindingSeverity.LOW,
    "A rollout has a very wide margin",
    reason="A version that fails every tenth request would be promoted.",
    fix="Narrow the margin; `headrace rollout simulate` estimates the additional time.",
)
def _wide_margins(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if endpoint.rollout is None:
            continue
        metrics = endpoint.rollout.metrics
        for name in ("errors", "rejections"):
            metric = getattr(metrics, name)
            if metric is not None and metric.margin > _HUGE_RATIO:
                evidence = (
                    f"endpoint '{endpoint.name}': a share of {metric.margin:g} more is tolerated"
                )
                yield Hit(f"{location}.rollout.metrics.{name}.margin", evidence)
        if metrics.latency is not None and metrics.latency.margin_ratio > _HUGE_LATENCY_RATIO:
            factor = metrics.latency.margin_ratio
            evidence = f"endpoint '{endpoint.name}': {factor:g} times the latency is tolerated"
            yield Hit(f"{location}.rollout.metrics.latency.margin_ratio", evidence)


@check(
    "HR308",
    FindingSeverity.MEDIUM,
    "A version is promoted without enough evidence",
    reason="If there are too few requests for a verdict, the version is promoted untested.",
    fix="on_timeout: rollback",
)
def _promotes_late(facts: AuditFacts) -> Iterator[Hit]:
    for location, endpoint in endpoints(facts.spec):
        if endpoint.rollout is not None and endpoint.rollout.on_timeout == "promote":
            evidence = f"endpoint '{endpoint.name}' has `on_timeout: promote`"
            yield Hit(f"{location}.rollout.on_timeout", evidence)


@check(
    "HR309",
    FindingSeverity.MEDIUM,
    "Requests are not logged",
    reason="After an incident there is no record of callers, times and responses.",
    fix="access_log: true",
)
def _no_access_log(facts: AuditFacts) -> Iterator[Hit]:
    gateway = facts.spec.gateway
    if not gateway.access_log:
        yield Hit("gateway.access_log", "`access_log: false`")
    elif gateway.request_log.mode == "off":
        yield Hit("gateway.request_log.mode", "`mode: off`")


@check(
    "HR310",
    FindingSeverity.MEDIUM,
    "Metrics are not scraped",
    reason="Callers then notice an outage first.",
    fix="Scrape the metrics address with Prometheus; `headrace status` shows it.",
    needs=(Need.SCRAPES,),
)
def _not_watched(facts: AuditFacts) -> Iterator[Hit]:
    if facts.scraped_s_ago is None:
        yield Hit("metrics", "/metrics has not been read since the start")
    elif facts.scraped_s_ago > _SCRAPED_WITHIN_S:
        yield Hit("metrics", f"/metrics was last read {facts.scraped_s_ago:.0f} s ago")
