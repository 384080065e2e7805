"""What an event says happened: kinds and reasons, from the code that writes them."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import headrace.control
from headrace.autoscale.state import ScaleReason
from headrace.control.rollouts.events import PHASE_REASONS
from headrace.rollout.state import RolloutPhase
from scripts.reference.enums import meanings
from scripts.reference.text import cell

SPEC_REASONS: Final[Mapping[str, str]] = {
    "Added": "An endpoint is asked for that was not there.",
    "Changed": "It is to be something else. The message says by what: `applied`, `put`, "
    "`undone to generation 3`, `rollout started`.",
    "Removed": "It is not asked for any more.",
    "Disagrees": "Parts of the stored spec, which an earlier version accepted, do not agree. They "
    "stay in force, and `headrace apply` refuses them; the message names setting and remedy.",
}
ROLLOUT_REASONS: Final[Mapping[str, str]] = {
    "Started": "A rollout began.",
    "Weight": "The new version's share of the requests is to be another.",
}
"""Besides those of phases."""
GATEWAY_REASONS: Final[Mapping[str, str]] = {
    "CertificateReplaced": "A new certificate is in force, as its files were replaced.",
    "CertificateRefused": "What a certificate's files hold is no good; the one before stays.",
    "GatewayCurrent": "A [gateway on another host](../how-to/several-gateways.md) serves the "
    "newest version: it has just come, or has caught up.",
    "GatewayBehind": "It has not taken the newest one for `--gateway-max-behind-s`.",
    "GatewayRefused": "Its Envoy refused the newest one; the message says why.",
    "GatewayLost": "It was not heard for `--gateway-lost-after-s`; it may go on serving.",
}
CLUSTER_REASONS: Final[Mapping[str, str]] = {
    "ClusterTrouble": "A [cluster](../how-to/kubernetes.md) does not take what a version needs, or "
    "its new pods do not get ready; told again when it says something else.",
    "ClusterTroubleEnded": "It does now.",
    "RollBegun": "Deployments wait to have their pods replaced until others are done.",
    "RollHeld": "They wait for some that do not get ready; `data` names both.",
    "RollDone": "None waits any more.",
}
ALERT_REASONS: Final[Mapping[str, str]] = {
    "Firing": "An alert began to fire; the data has its name, value and threshold.",
    "Resolved": "It is over.",
}
DRIFT_REASONS: Final[Mapping[str, str]] = {
    "DriftFound": "Values of features are no longer as in the reference; `data` has the evidence.",
    "DriftEnded": "They are again.",
    "DriftReferenceTaken": "The first requests are the reference now, where none was given.",
}
BATCHING_REASONS: Final[Mapping[str, str]] = {
    "RowsDiffer": "A row of a batch had another answer when it was run alone: callers' answers "
    "depend on each other. `data` names the output and the size.",
}
FEATURES_REASONS: Final[Mapping[str, str]] = {
    "Materialized": "The first scheduled run of a feature view, as it is now, worked.",
    "MaterializeFailed": "One failed; told again when the reason is another.",
    "MaterializeRecovered": "The next one worked.",
    "FeatureSkew": "Features were served other than training will see them; `data` names them.",
    "FeatureSkewEnded": "They are served so again, as far as the sample goes.",
}
JOB_REASONS: Final[Mapping[str, str]] = {
    "JobSucceeded": "The first run of a [job](../how-to/batch.md#schedule-jobs) worked.",
    "JobFailed": "One failed, and is not tried again.",
    "JobRecovered": "The next one worked.",
    "JobCancelled": "Somebody ended a run.",
    "JobSkipped": "Moments of its schedule were left out; the message says why.",
    "JobTooLarge": "A try took more than `memory_limit` and was ended; another follows, or none.",
    "JobLate": "No run has succeeded `late_after_s` after a moment.",
}
REPLICA_REASONS: Final[Mapping[str, str]] = {
    "Died": "A replica that had been ready ended by itself, by the signal or with the exit status "
    "that the message says. It is started again.",
}
FAULT_REASONS: Final[Mapping[str, str]] = {
    "Waits": "Looking after an object failed, and it waits; all others go on. The message names it "
    "and the reason, the log has the traceback.",
    "GoesOn": "The cause is gone.",
}
STREAM_REASONS: Final[Mapping[str, str]] = {
    "StreamRunning": "A stream runs: all of its workers are members of its group.",
    "StreamPaused": "It takes no records, as it was told.",
    "StreamRetrying": "What scores, or the broker, is away; it waits for it.",
    "StreamStalled": "None of its workers has had a partition for half a minute: other members of "
    "its group have all of them, there are none, or a topic does not exist.",
    "StreamDegraded": "Some of its workers ended, and are started again; the message says why.",
    "StreamFailed": "None of its workers runs.",
    "StreamWorkerReplaced": "A worker hung: it answered nobody for a minute, or a call of its "
    "broker's client did not return for three. It was ended, and another starts.",
}
_PHASE_MEANINGS: Final[Mapping[RolloutPhase, str]] = {
    RolloutPhase.PROGRESSING: "The new version's replicas are ready and get its share.",
    RolloutPhase.PAUSED: "By a person, by a step that waits for approval, or by `on_timeout`.",
    RolloutPhase.PROMOTED: "The new version has all requests.",
}
_SCALE_MEANINGS: Final[Mapping[str, str]] = {
    "Steady": "The count is what the load needs.",
    "Schedule": "A line of the schedule asks for a minimum.",
    "Minimum": "Fewer would do, but for `min_replicas`.",
    "MissingMetrics": "A replica does not tell its load; missing data never scales down.",
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
    yield from (("spec", reason, text) for reason, text in SPEC_REASONS.items())
    yield from (("rollout", reason, text) for reason, text in ROLLOUT_REASONS.items())
    phases = _phases()
    yield from (("rollout", reason, phases[phase]) for phase, reason in PHASE_REASONS.items())
    yield from (("gateway", reason, text) for reason, text in GATEWAY_REASONS.items())
    yield from (("cluster", reason, text) for reason, text in CLUSTER_REASONS.items())
    yield from (("alert", reason, text) for reason, text in ALERT_REASONS.items())
    yield from (("drift", reason, text) for reason, text in DRIFT_REASONS.items())
    yield from (("batching", reason, text) for reason, text in BATCHING_REASONS.items())
    yield from (("features", reason, text) for reason, text in FEATURES_REASONS.items())
    yield from (("job", reason, text) for reason, text in JOB_REASONS.items())
    yield from (("replica", reason, text) for reason, text in REPLICA_REASONS.items())
    yield from (("fault", reason, text) for reason, text in FAULT_REASONS.items())
    yield from (("stream", reason, text) for reason, text in STREAM_REASONS.items())
    for reason, text in meanings(ScaleReason).items():
        yield "scale", reason, text or _SCALE_MEANINGS[reason]


def written_events() -> set[tuple[str, str]]:
    """Kinds and reasons that stand in calls of `Event` in the control plane's code."""
    found = set()
    for path in Path(headrace.control.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Event":
                words = {one.arg: _strings(one.value) for one in node.keywords}
                kinds = words.get("kind", [])
                found |= {(kind, reason) for kind in kinds for reason in words.get("reason", [])}
    return found


def _strings(value: ast.expr) -> list[str]:
    return [
        node.value
        for node in ast.walk(value)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
