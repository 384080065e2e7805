"""How much do features add to an endpoint's median? The same model with values, and with a key.

    python -m bench.features_endpoint

30 features of 3 views in SQLite and 2 values of the request, over a Unix socket, one at a time.
"""

import http.client
import json
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import processes
from headrace.core import FeatureLookup, ReplicaSettings
from headrace.features import encode_service, open_online_store, parse_definitions, push_rows
from headrace.testing import models

ENTITIES, VIEWS, FEATURES = 10_000, 3, 10
ROUNDS, REQUESTS = 7, 1500


class OverSocket(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = str(path)

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self._path)


def fill(folder: Path) -> tuple[str, str]:
    """An online store with all entities; its URL, and the service as a replica is told."""
    views = [
        {
            "name": f"v{i}",
            "entities": ["customer"],
            "ttl_s": 86_400.0,
            "source": {"path": "unused.parquet"},
            "features": [{"name": f"f{i}_{j}", "datatype": "FP32"} for j in range(FEATURES)],
        }
        for i in range(VIEWS)
    ]
    document: dict[str, Any] = {
        "entities": [{"name": "customer", "datatype": "INT64"}],
        "feature_views": views,
        "feature_services": [{"name": "all", "features": [view["name"] for view in views]}],
    }
    definitions = parse_definitions(document, base_dir=folder)
    url = f"sqlite:///{folder / 'online.db'}"
    store = open_online_store(url)
    now = datetime.now(UTC)
    for i in range(VIEWS):
        rows = [
            {
                "customer": key,
                "event_timestamp": now,
                **{f"f{i}_{j}": key / (j + 1) for j in range(FEATURES)},
            }
            for key in range(ENTITIES)
        ]
        push_rows(definitions.view(f"v{i}"), store, rows)
    store.close()
    return url, encode_service(definitions.service("all"))


def body_of(tensors: dict[str, np.ndarray]) -> tuple[bytes, dict[str, str]]:
    """A binary V2 request."""
    datatypes = {"float32": "FP32", "int64": "INT64"}
    inputs = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": datatypes[array.dtype.name],
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in tensors.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    return head + b"".join(array.tobytes() for array in tensors.values()), headers


def asked(path: Path, make: Callable[[int], dict[str, np.ndarray]]) -> float:
    """The median of a round, in microseconds."""
    connection = OverSocket(path)
    random = np.random.default_rng(0)
    took = []
    for key in random.integers(0, ENTITIES, REQUESTS).tolist():
        body, headers = body_of(make(key))
        began = time.perf_counter()
        connection.request("POST", "/v2/models/m/infer", body=body, headers=headers)
        answer = connection.getresponse()
        answer.read()
        took.append(time.perf_counter() - began)
        assert answer.status == http.client.OK
    connection.close()
    return float(np.median(took)) * 1e6


def is_ready(path: Path) -> bool:
    """Whether the model is loaded."""
    if not path.exists():
        return False
    connection = OverSocket(path)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    """Measure in turns, and print medians and their ratio."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hr-")))
        (model,) = models.write(folder, "mlp")
        url, service = fill(folder)
        columns = [f"f{i}_{j}" for i in range(VIEWS) for j in range(FEATURES)]
        features = FeatureLookup(
            service=service, online_store=url, inputs={"input": [*columns, "a", "b"]}
        )
        cached = msgspec.structs.replace(features, cache_ttl_s=60.0)
        sockets = {}
        for name, told in (("values", None), ("features", features), ("cached", cached)):
            sockets[name] = folder / f"{name}.sock"
            settings = ReplicaSettings(
                model_name="m",
                model_version="1",
                path=str(model),
                uds=str(sockets[name]),
                features=msgspec.UNSET if told is None else told,
            )
            file = folder / f"{name}.json"
            file.write_bytes(msgspec.json.encode(settings))
            argv = [sys.executable, "-m", "headrace.serving", "--settings", str(file)]
            stack.enter_context(
                processes.running(
                    argv,
                    part="replica",
                    cores=frozenset({0}),
                    log=folder / f"{name}.log",
                    is_ready=partial(is_ready, sockets[name]),
                )
            )
        ones = np.ones(1, np.float32)

        def values(key: int) -> dict[str, np.ndarray]:
            return {"input": np.full((1, 32), key, np.float32)}

        def keys(key: int) -> dict[str, np.ndarray]:
            return {"customer": np.array([key], np.int64), "a": ones, "b": ones}

        rounds: dict[str, list[float]] = {name: [] for name in sockets}
        for _ in range(ROUNDS):
            for name, path in sockets.items():
                rounds[name].append(asked(path, values if name == "values" else keys))
    print(f"load average {os.getloadavg()[0]:.2f}")
    plain = np.median(rounds["values"])
    for name, found in rounds.items():
        middle = np.median(found)
        print(f"{name:10} p50 {middle:7.0f} us [{min(found):.0f} to {max(found):.0f}]", end="")
        print(f"  {middle / plain:.2f} times, {middle - plain:+.0f} us")


if __name__ == "__main__":
    main()
