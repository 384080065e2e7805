"""How do requests and answers of the management API look? Shown in its own description."""

from typing import Any, Final

ENTRY: Final = {"model": "fraud:3", "replicas": 2, "timeout_s": 0.5}
SPEC: Final = {"version": 1, "endpoints": [{"name": "fraud", "model": "fraud:3"}]}
APPLIED: Final[dict[str, Any]] = {
    "changes": ["endpoint 'fraud' added: version 3 (fraud:3, weight 100, 1 replica)"],
    "generation": 12,
    "warnings": [],
}
DIFF: Final[dict[str, Any]] = {
    "changes": ["endpoint 'fraud': version 3 removed", "endpoint 'fraud': version 4 added"],
    "endpoints": {
        "fraud": {
            "before": {"name": "fraud", "model": "fraud:3"},
            "after": {"name": "fraud", "model": "fraud:4"},
        }
    },
}
START: Final[dict[str, Any]] = {
    "canary": {
        "summary": "Two steps, each until the metrics' verdict",
        "value": {
            "version": "4",
            "rollout": {
                "strategy": "canary",
                "steps": [
                    {"weight": 10, "until": "verdict"},
                    {"weight": 50, "pause_s": 60, "until": "verdict"},
                ],
            },
        },
    },
    "shadow": {
        "summary": "Copies of a tenth of the requests, compared answer by answer",
        "value": {"version": "4", "rollout": {"strategy": "shadow", "mirror_percent": 10}},
    },
    "upstream": {
        "summary": "A server that someone else runs",
        "value": {"upstream": {"url": "http://triton:8000", "protocol": "v2"}},
    },
}
ROLLOUT: Final[dict[str, Any]] = {
    "id": "r7",
    "endpoint": "fraud",
    "strategy": "canary",
    "phase": "rolled_back",
    "over": True,
    "from_version": "3",
    "to_version": "4",
    "from_model": "fraud:3",
    "to_model": "fraud:4",
    "weight": 0,
    "baseline_weight": 0,
    "mirror_percent": 0,
    "step": 0,
    "steps": [{"weight": 10, "pause_s": 0.0, "until": "verdict"}],
    "began": 1764000000.0,
    "since": 1764000184.0,
    "duration_s": 184.0,
    "reason": "errors: 5.1 % of 2,040 requests failed on version 4 against 0.1 % of 18,110",
    "problem": "",
    "actor": "ann@laptop",
    "verdict": {
        "outcome": "roll_back",
        "at": 1764000184.0,
        "explanation": "errors: 5.1 % of 2,040 requests failed on version 4 against 0.1 % of "
        "18,110 on version 3: between +3.2 and +7.1 points; 0.5 points are tolerated",
        "metrics": [
            {
                "metric": "errors",
                "outcome": "roll_back",
                "reason": "5.1 % against 0.1 %",
                "unit": "ratio difference",
                "baseline": 0.001,
                "candidate": 0.051,
                "effect": 0.05,
                "low": 0.032,
                "high": 0.071,
                "margin": 0.005,
                "alpha": 0.0125,
                "samples": [18110, 2040],
            }
        ],
    },
    "requests": {"baseline": 18110, "candidate": 2040},
    "counted": {"baseline_requests": 18110, "candidate_requests": 2040, "counted_s": 176.0},
    "outlook": None,
    "notes": [],
}
EVIDENCE: Final[dict[str, Any]] = {
    "id": "r7",
    "endpoint": "fraud",
    "step_s": 2.0,
    "metrics": [
        {
            "metric": "errors",
            "unit": "ratio difference",
            "points": [
                {
                    "at": 1764000010.0,
                    "effect": 0.04,
                    "low": -0.021,
                    "high": 0.19,
                    "margin": 0.005,
                },
                {
                    "at": 1764000184.0,
                    "effect": 0.05,
                    "low": 0.032,
                    "high": 0.071,
                    "margin": 0.005,
                },
            ],
        }
    ],
}
STATUS: Final[dict[str, Any]] = {
    "name": "fraud",
    "ready": True,
    "failed": False,
    "url": "http://127.0.0.1:8000/v2/models/fraud/infer",
    "revisions": [],
    "message": "",
}
ENDPOINT: Final[dict[str, Any]] = {
    "name": "fraud",
    "generation": 3,
    "spec": {"name": "fraud", **ENTRY},
    "status": STATUS,
    "conditions": [
        {
            "type": "Ready",
            "status": True,
            "reason": "Serving",
            "message": "",
            "since": 1764000000.0,
        }
    ],
    "rollout": ROLLOUT,
}
GENERATION: Final[dict[str, Any]] = {
    "generation": 3,
    "at": 1764000000.0,
    "reason": "applied",
    "actor": "ann@laptop",
    "current": True,
    "spec": {"name": "fraud", "model": "fraud:3"},
    "versions": [{"version": "3", "model": "fraud:3", "weight": 100, "replicas": 2}],
}
ROLLOUT_END: Final[dict[str, Any]] = {
    "id": "r7",
    "at": 1764000184.0,
    "phase": "rolled_back",
    "from_version": "3",
    "to_version": "4",
    "duration_s": 184.0,
    "decided_by": "verdict",
    "why": "errors: 5.1 % of 2,040 requests failed on version 4 against 0.1 % of 18,110",
}
FEEDBACK: Final[dict[str, Any]] = {
    "one": {"summary": "One", "value": {"request_id": "5b0c6a", "reward": 1.0}},
    "many": {
        "summary": "Several, each answered for itself",
        "value": [{"request_id": "5b0c6a", "reward": 1.0}, {"request_id": "91fe2d", "reward": 0}],
    },
    "label": {"summary": "A label", "value": {"request_id": "5b0c6a", "label": "cat"}},
}
RESULTS: Final[dict[str, Any]] = {"results": [{"request_id": "5b0c6a", "outcome": "taken"}]}
EVENT: Final[dict[str, Any]] = {
    "at": 1764000184.0,
    "endpoint": "fraud",
    "kind": "rollout",
    "reason": "RolledBack",
    "message": "rollout r7: errors: 5.1 % against 0.1 %",
    "generation": 4,
    "rollout": "r7",
    "actor": "",
    "data": {"low": 0.032, "margin": 0.005},
    "id": 812,
}
MODEL: Final[dict[str, Any]] = {
    "name": "fraud",
    "version": "4",
    "reference": "fraud:4",
    "digest": "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    "size_bytes": 25918,
    "files": [
        {
            "path": "",
            "size_bytes": 25918,
            "sha256": "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
        }
    ],
    "filename": "model.onnx",
    "runtime": "onnx",
    "signature": {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 32]}],
        "outputs": [{"name": "p", "datatype": "FP32", "shape": [-1, 2]}],
        "batched": True,
    },
    "created_at": "2025-11-24T16:00:00Z",
    "created_by": "ann@laptop",
    "source": "git:4f442bb",
    "labels": {},
    "metadata": {},
    "runs_code": False,
    "first_run": {"run_s": 0.00012, "error": ""},
    "schema": 1,
}
