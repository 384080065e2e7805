"""What is not signed by somebody trusted is not served: at apply, and again where it is loaded."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from headrace.registry import Registry
from headrace.registry.signing import make_key, sign, write_keys
from headrace.runtimes import inspect_model
from headrace.testing import models
from tests.e2e.control.system import System, replicas

pytestmark = pytest.mark.e2e


@pytest.fixture
def trusted(system: System, mlp: Path, tmp_path: Path) -> Path:
    """The public key that signed versions `m:1` and `other:1` of the system's home."""
    key = make_key()
    _, public = write_keys(tmp_path / "keys", key)
    registry = Registry(system.home, inspect_model)
    second = tmp_path / "second.onnx"
    second.write_bytes(models.mlp(seed=3))
    third = tmp_path / "third.onnx"
    third.write_bytes(models.mlp(seed=4))
    for name, path in (("m", mlp), ("other", second)):
        version = registry.push(name, path)
        registry.add_signature(name, "1", sign(version, key, signed_at=0.0, by="ann"))
    registry.push("m", third)
    return public


def spec(public: Path, *endpoints: dict[str, Any], **more: Any) -> dict[str, Any]:
    security = {"require_signature": True, "trusted_keys": [str(public)]}
    return {"version": 1, "security": security, "endpoints": list(endpoints), **more}


def alter(system: System, name: str) -> None:
    """Change one byte of what is stored of a version, as its owner could."""
    registry = Registry(system.home)
    path = registry.path(registry.get(f"{name}:1"))
    path.parent.chmod(0o755)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def test_unsigned_versions_are_refused_however_they_are_asked_for(
    system: System, trusted: Path
) -> None:
    m = {"name": "m", "model": "m:1"}
    system.start(spec=spec(trusted, m))
    system.wait_ready()
    applied = system.post("/api/v1/apply", spec(trusted, {"name": "m", "model": "m:2"}))
    rolled = system.post("/api/v1/endpoints/m/rollout", {"version": "2"})
    loaded = system.post("/v2/repository/models/nobody/load")
    system.post("/api/v1/apply?wait_s=30", {"version": 1, "endpoints": [{**m, "model": "m:2"}]})
    system.post("/api/v1/apply?wait_s=30", spec(trusted, m))
    undone = system.post("/api/v1/endpoints/m/undo")

    for status, answer in (applied, rolled):
        assert status == 400
        assert "m:2: it is not signed" in answer["detail"]
    assert loaded[0] == 400
    assert (undone[0], "m:2" in undone[1]["detail"]) == (409, True)
    assert system.infer("m")[0] == 200


@pytest.mark.long
def test_a_version_that_is_altered_where_it_lies_is_not_loaded_again(
    system: System, trusted: Path
) -> None:
    other = {"name": "other", "model": "other:1"}
    system.start(spec=spec(trusted, {"name": "m", "model": "m:1"}, other))
    status = system.wait_ready()
    alter(system, "m")
    os.kill(replicas(status, "m")[0]["pid"], signal.SIGKILL)
    after = system.wait_for(lambda now: any(e["failed"] for e in now["endpoints"]))
    refused = system.post("/api/v1/apply", spec(trusted, {"name": "m", "model": "m:1"}, other))
    m = next(e for e in after["endpoints"] if e["name"] == "m")

    assert "is damaged" in m["message"]
    assert refused[0] == 400
    assert system.infer("m")[0] == 503
    assert system.infer("other")[0] == 200


@pytest.mark.long
def test_a_pool_proves_each_model_before_it_loads_it(system: System, trusted: Path) -> None:
    pool = {"name": "small", "replicas": 1}
    entries = [{"name": n, "model": f"{n}:1", "pool": "small"} for n in ("m", "other")]
    system.start(spec=spec(trusted, *entries, pools=[pool]), first_request=False)
    system.wait_ready()
    alter(system, "m")
    answers = {name: system.infer(name)[0] for name in ("m", "other")}

    assert answers == {"m": 503, "other": 200}
    assert "is damaged" in (system.home / "logs" / "pool-small-1.log").read_text()
