"""Values for the chart, one group for each thing that somebody may choose."""

import copy
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

Values = dict[str, Any]

DIGEST: Final = f"sha256:{'ab' * 32}"
OTHER_DIGEST: Final = f"sha256:{'cd' * 32}"
_TOLERATIONS: Final = [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}]
_AFFINITY: Final = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a", "b"]}]}
            ]
        }
    }
}
_SOMEWHERE: Final = {
    "nodeSelector": {"pool": "inference"},
    "tolerations": _TOLERATIONS,
    "affinity": _AFFINITY,
    "priorityClassName": "important",
    "podLabels": {"team": "ml"},
    "podAnnotations": {"note": "1"},
    "env": [{"name": "TZ", "value": "UTC"}],
    "extraVolumes": [{"name": "trust", "secret": {"secretName": "trust"}}],
    "extraVolumeMounts": [{"name": "trust", "mountPath": "/etc/trust", "readOnly": True}],
}
_BEHAVIOR: Final = {"scaleDown": {"stabilizationWindowSeconds": 120}}
HPA: Final = {
    "type": "hpa", "minReplicas": 1, "maxReplicas": 4, "targetInFlight": "7500m",
    "behavior": _BEHAVIOR,
}  # fmt: skip
KEDA: Final = {
    "type": "keda", "minReplicas": 1, "maxReplicas": 4, "targetInFlight": "8", "window": "60s",
    "prometheusUrl": "http://prometheus.monitoring:9090", "targetQueueWaitSeconds": "0.05",
}  # fmt: skip


def arm_name(endpoint: str, number: int) -> str:
    """The chart's name of the objects of an endpoint's arm, from 1 on."""
    suffix = f"-{hashlib.sha256(endpoint.encode()).hexdigest()[:8]}-{number}"
    stem = re.sub(r"[^a-z0-9]+", "-", f"headrace-{endpoint}".lower())
    return f"{stem[: 57 - len(suffix)].strip('-')}{suffix}"


def a_version(endpoint: str = "digits", version: str = "1", **more: Any) -> Values:
    """A row of `workloads.versions`."""
    row: Values = {
        "endpoint": endpoint,
        "arm": int(version) if version.isdigit() else 1,
        "version": version,
        "revision": f"{len(endpoint):02x}{version:0>2}{'e' * 12}"[:16],
        "model": f"{endpoint}:{version}",
        "digest": DIGEST,
        "weight": 100,
        "replicas": 2,
        "drainTimeoutSeconds": 30,
        "requestTimeout": "5s500ms",
        "settings": '{\n  "model_name": "digits",\n  "grpc_port": 8001\n}',
        "pod": {
            "image": f"registry.example/team/replica@{DIGEST}",
            "resources": {
                "requests": {"cpu": "1", "memory": "1Gi"},
                "limits": {"memory": "1Gi"},
            },
        },
    }
    return {**row, **more}


A_JOB: Final[Values] = {
    "name": "nightly.scores", "schedule": "0 6 * * *", "timeZone": "Europe/Paris",
    "suspend": False, "concurrencyPolicy": "Forbid", "startingDeadlineSeconds": 86400,
    "retries": 2, "timeoutSeconds": 3600, "keepRuns": 50, "model": {"digest": DIGEST},
    "args": ["batch", "run", "--model=/models/model.onnx", "--run-id=$(RUN_ID)"],
}  # fmt: skip
A_STREAM: Final[Values] = {
    "name": "payments", "replicas": 2, "drainTimeoutSeconds": 30,
    "models": [{"name": "model", "digest": DIGEST}],
    "spec": {
        "name": "payments", "model": "/models/model/model.onnx",
        "source": {"broker": "kafka://kafka:9092", "topics": ["in"]}, "sink": {"topic": "out"},
    },
}  # fmt: skip
LAG: Final[Values] = {
    "minReplicas": 1, "maxReplicas": 8,
    "triggers": [
        {
            "type": "kafka",
            "metadata": {
                "bootstrapServers": "kafka:9092", "consumerGroup": "payments", "topic": "in",
                "lagThreshold": "2560", "offsetResetPolicy": "earliest",
            },
            "authenticationRef": {"name": "kafka"},
        }
    ],
}  # fmt: skip

CHOICES: Final[Mapping[str, Sequence[Values]]] = {
    "state": (
        {},
        {
            "control": {
                "replicas": 2,
                "state": {"existingSecret": "state", "key": "url"},
                "internalSecret": "internal",
                "adminSecret": "admin",
            }
        },
        {"control": {"persistence": {"existingClaim": "kept", "storageClass": "fast"}}},
    ),
    "tls": (
        {"agentTls": {"certManager": {"enabled": True}}},
        {
            "agentTls": {
                "certManager": {
                    "enabled": True,
                    "issuerRef": {"name": "corp", "kind": "ClusterIssuer"},
                }
            }
        },
        {"agentTls": {"controlSecret": "control-tls", "gatewaySecret": "gateway-tls"}},
    ),
    "spec": (
        {},
        {"spec": {"version": 1, "endpoints": [{"name": "digits", "model": "digits:1"}]}},
        {
            "spec": {
                "version": 1,
                "endpoints": [],
                "kubernetes": {"autoscaler": "keda"},
                "gateway": {"tls": {"certificate_file": "/a", "key_file": "/b"}},
            },
            "gateway": {"tls": {"hostname": "models.example", "caConfigMap": "authority"}},
        },
    ),
    "workloads": (
        {},
        {
            "workloads": {
                "mode": "static",
                "versions": [
                    a_version(weight=90),
                    a_version(version="2", weight=10, autoscaling=HPA),
                    a_version("Fraud.Score_v2" + "x" * 60, autoscaling=KEDA),
                ],
            }
        },
        {"workloads": {"mode": "static", "versions": []}},
    ),
    "apart": (
        {},
        {"jobs": [A_JOB], "streams": [A_STREAM]},
        {"streams": [{**A_STREAM, "models": [], "autoscaling": LAG}]},
    ),
    "monitoring": (
        {},
        {
            "monitoring": {
                "enabled": True,
                "labels": {"release": "prometheus"},
                "tokenSecret": {"name": "viewer", "key": "token"},
                "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
                "dashboards": {"enabled": True, "annotations": {"grafana_folder": "Headrace"}},
            }
        },
        {"monitoring": {"enabled": True}},
    ),
    "ingress": (
        {},
        {
            "ingress": {
                "type": "gateway-api",
                "parentRefs": [{"name": "public", "namespace": "infra", "sectionName": "https"}],
                "hostnames": ["models.example"],
                "annotations": {"note": "a"},
            }
        },
        {"ingress": {"type": "gateway-api", "parentRefs": [{"name": "public"}], "grpc": False}},
    ),
    "network": (
        {},
        {
            "networkPolicy": {
                "callers": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}],
                "operators": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
                "scrapers": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
                "state": {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [5432]},
                "controlEgress": [{"ports": [{"protocol": "TCP", "port": 443}]}],
                "gatewayEgress": [{"to": [{"ipBlock": {"cidr": "10.2.0.0/16"}}]}],
                "replicaEgress": [{"ports": [{"protocol": "TCP", "port": 6379}]}],
                "egress": [{"ports": [{"protocol": "TCP", "port": 15012}]}],
            }
        },
        {"networkPolicy": {"enabled": False}},
    ),
    "service": (
        {},
        {
            "gateway": {
                "service": {
                    "type": "LoadBalancer",
                    "httpPort": 80,
                    "externalTrafficPolicy": "Local",
                    "loadBalancerClass": "example.com/nlb",
                    "annotations": {"lb": "internal"},
                },
                "url": "https://models.example",
            }
        },
        {"control": {"service": {"type": "NodePort"}, "allowedHosts": ["headrace.example"]}},
    ),
    "images": (
        {},
        {
            "image": {
                "registry": "registry.example/team",
                "pullPolicy": "Always",
                "pullSecrets": ["registry"],
            },
            **{
                part: {"image": {"digest": OTHER_DIGEST}}
                for part in ("control", "gateway", "workers")
            },
        },
    ),
    "pods": (
        {},
        {
            **dict.fromkeys(("control", "gateway", "workers"), _SOMEWHERE),
            "commonLabels": {"owner": "ml-platform"},
            "environmentSecret": "environment",
        },
        {
            part: {"serviceAccount": {"create": False, "name": "own"}}
            for part in ("control", "gateway", "workers")
        },
    ),
    "rest": (
        {},
        {"tests": {"enabled": False}, "rbac": {"create": False}, "platformUid": True},
        {
            "rbac": {"autoscaler": "all", "flowSchema": True},
            "instance": "models",
            "gateway": {"autoscaling": {"enabled": True}},
            "tests": {"keySecret": {"name": "key"}},
        },
    ),
}
_ALWAYS: Final[Values] = {"artifacts": {"url": "s3://models/prod", "existingSecret": "artifacts"}}


def merged(*parts: Mapping[str, Any]) -> Values:
    """All of them, later ones over earlier ones, as Helm does it."""
    whole: Values = {}
    for part in parts:
        for key, value in part.items():
            if isinstance(value, Mapping) and isinstance(whole.get(key), dict):
                whole[key] = merged(whole[key], value)
            else:
                whole[key] = copy.deepcopy(value)
    return whole


def combinations() -> Iterator[tuple[str, Values]]:
    """Values in which every two choices of different kinds meet, and what they are called."""
    for chosen in _pairwise([len(options) for options in CHOICES.values()]):
        parts = [options[i] for options, i in zip(CHOICES.values(), chosen, strict=True)]
        yield "".join(map(str, chosen)), merged(_ALWAYS, *parts)


def _pairwise(sizes: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Rows of choices, as few as a greedy search finds, that have every pair in some row."""
    columns = range(len(sizes))
    left = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(columns, 2)
        for i in range(sizes[a])
        for j in range(sizes[b])
    }
    while left:
        row: dict[int, int] = dict(min(left))
        for column in columns:
            # What meets most of what is chosen for the first time.
            row.setdefault(
                column, max(range(sizes[column]), key=partial(_new_pairs, left, row, column))
            )
        left -= _pairs(row)
        yield tuple(row[column] for column in columns)


def _pairs(row: Mapping[int, int]) -> set[tuple[tuple[int, int], tuple[int, int]]]:
    return {(a, b) for a, b in itertools.combinations(sorted(row.items()), 2)}


def _new_pairs(
    left: set[tuple[tuple[int, int], tuple[int, int]]],
    row: Mapping[int, int],
    column: int,
    choice: int,
) -> int:
    return len(left & _pairs({**row, column: choice}))
