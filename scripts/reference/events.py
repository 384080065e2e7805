"""Kinds and reasons of events, with their meanings."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import headrace.control
from headrace.autoscale.state import ScaleReason
from headrace.control.model.rollout_events import PHASE_REASONS
from headrace.rollout.state import RolloutPhase
from scripts.reference.tables import cell, meanings

REASONS: Final[Mapping[str, Mapping[str, str]]] = {
    "spec": {
        "Added": "The desired state has a new endpoint.",
        "Changed": "An endpoint's desired state changed. The message names the cause: `applied`, "
        "`put`, `undone to generation 3`, `rollout started`.",
        "Removed": "The desired state no longer has this endpoint.",
        "Disagrees": "Parts of the stored spec, which an earlier version accepted, contradict each "
        "other. They stay in force, but `headrace apply` refuses them; the message names the "
        "setting and the remedy.",
    },
    "rollout": {
        "Started": "A rollout started.",
        "Weight": "The new version's weight changes.",
    },
    "gateway": {
        "UpstreamFailed": "The upstream of a version gets no requests: its servers fail the health "
        "checks, or TLS with them does.",
        "UpstreamRecovered": "The upstream of a version answers again.",
        "CertificateReplaced": "The certificate files were replaced; the new one is in force.",
        "CertificateRefused": "The certificate files are invalid; the previous certificate stays.",
        "TokensLost": "The gateway's process ended, and some tokens of its last answers are not in "
        "the [usage](../how-to/language-models.md#show-used-tokens-by-key); `data` has `seconds` "
        "without counts at most, and about how many `tokens`.",
        "GatewayCurrent": "A [gateway on another host](../how-to/several-gateways.md) connected or "
        "caught up, and serves the newest version.",
        "GatewayBehind": "It has not taken the newest version for `--gateway-max-behind-s`.",
        "GatewayRefused": "Its Envoy refused the newest version; the message has the reason.",
        "GatewayLost": "It sent nothing for `--gateway-lost-after-s`; it may still be serving.",
    },
    "cluster": {
        "ClusterTrouble": "A [cluster](../how-to/kubernetes.md) refuses an object of a version, or "
        "its new pods do not become ready; repeated when the reason changes.",
        "ClusterTroubleEnded": "The problem is solved.",
        "RollBegun": "Deployments wait for others before their pods are replaced.",
        "RollHeld": "They wait for pods that do not become ready; `data` names both.",
        "RollDone": "No Deployment waits any more.",
    },
    "alert": {
        "Firing": "An alert fires; `data` has its name, value and threshold.",
        "Resolved": "The alert ended.",
    },
    "drift": {
        "DriftFound": "Feature values differ from the reference; `data` has the evidence.",
        "DriftEnded": "Feature values match the reference again.",
        "DriftReferenceTaken": "The first requests became the reference, as none was set.",
    },
    "batching": {
        "RowsDiffer": "A row of a batch had another answer when it was run alone, so answers "
        "depend on other requests. `data` names the output and the size.",
    },
    "features": {
        "Materialized": "The first scheduled run of a feature view in its current form succeeded.",
        "MaterializeFailed": "A run failed; repeated when the reason changes.",
        "MaterializeRecovered": "A run succeeded after a failure.",
        "FeatureSkew": "Served features differ from those that training will see; `data` names "
        "them.",
        "FeatureSkewEnded": "They agree again, as far as the sample shows.",
    },
    "job": {
        "JobSucceeded": "The first run of a [job](../how-to/batch.md#schedule-jobs) succeeded.",
        "JobFailed": "A run failed and is not retried.",
        "JobRecovered": "A run succeeded after a failure.",
        "JobCancelled": "A user cancelled a run.",
        "JobSkipped": "Scheduled runs were skipped; the message has the reason.",
        "JobTooLarge": "An attempt exceeded `memory_limit` and was killed; it may be retried.",
        "JobLate": "No run succeeded within `late_after_s` of its scheduled time.",
    },
    "replica": {
        "Died": "A ready replica ended; the message has the signal or the exit status. It is "
        "restarted.",
    },
    "fault": {
        "Waits": "Reconciling an object failed and is retried later; other objects are not "
        "affected. The message names the object and the reason, the log has the traceback.",
        "GoesOn": "The cause is gone.",
    },
    "stream": {
        "StreamRunning": "All workers of a stream are members of its group.",
        "StreamPaused": "It reads no records, on a user's command.",
        "StreamRetrying": "The model or the broker is unavailable; the stream retries.",
        "StreamStalled": "No worker has had a partition for half a minute: other members of the "
        "group have all of them, the topic has none, or it does not exist.",
        "StreamDegraded": "Some workers ended and are restarted; the message has the reason.",
        "StreamFailed": "No worker runs.",
        "StreamWorkerReplaced": "A worker did not respond for a minute, or a call of its broker "
        "client did not return for 20 seconds. It ended and is restarted.",
        "StreamRecordsExpired": "Retention deleted records before a worker read them; the message "
        "has their number.",
    },
}
"""Kind ▸ reason ▸ meaning, without the phases of rollouts and the reasons for scaling."""
_PHASE_MEANINGS: Final[Mapping[RolloutPhase, str]] = {
    RolloutPhase.PROGRESSING: "The new version's replicas are ready and get its weight.",
    RolloutPhase.PAUSED: "By a user, by a step that waits for approval, or by `on_timeout`.",
    RolloutPhase.PROMOTED: "The new version has all requests.",
}
_SCALE_MEANINGS: Final[Mapping[str, str]] = {
    "Steady": "The replica count fits the load.",
    "Schedule": "A line of the schedule sets the minimum.",
    "Minimum": "Fewer replicas would suffice, but `min_replicas` holds.",
    "MissingMetrics": "A replica reports no load; missing data never scales down.",
}


def event_table() -> str:
    """Every kind with its reasons and their meanings."""
    rows = [f"| `{kind}` | `{reason}` | {cell(text)} |" for kind, reason, text in _events()]
    return "\n".join(["| kind | reason | meaning |", "|---|---|---|", *rows])


def phase_table() -> str:
    """Every phase of a rollout."""
    rows = [f"| `{phase.value}` | {text} |" for phase, text in _phases().items()]
    return "\n".join(["| phase | meaning |", "|---|---|", *rows])


def _phases() -> dict[RolloutPhase, str]:
    return {
        RolloutPhase(word): text or _PHASE_MEANINGS[RolloutPhase(word)]
        for word, text in meanings(RolloutPhase).items()
    }


def _events() -> Iterator[tuple[str, str, str]]:
    phases = _phases()
    for kind, reasons in REASONS.items():
        yield from ((kind, reason, text) for reason, text in reasons.items())
        if kind == "rollout":
            yield from ((kind, reason, phases[phase]) for phase, reason in PHASE_REASONS.items())
    for reason, text in meanings(ScaleReason).items():
        yield "scale", reason, text or _SCALE_MEANINGS[reason]


def written_events() -> set[tuple[str, str]]:
    """Kinds and reasons in calls of `Event` in the control plane's code."""
    pairs = set()
    for path in Path(headrace.control.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Event":
                words = {keyword.arg: _strings(keyword.value) for keyword in node.keywords}
                kinds = words.get("kind", [])
                pairs |= {(kind, reason) for kind in kinds for reason in words.get("reason", [])}
    return pairs


def _strings(value: ast.expr) -> list[str]:
    return [
        node.value
        for node in ast.walk(value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
