"""A whole control plane on a cluster whose pods are real processes: requests never fail."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import main
from headrace.control.base.ports import pick_ports
from headrace.registry import Registry
from headrace.runtimes import inspect_model
from tests.e2e.control.system import System, Traffic, replicas
from tests.e2e.kubernetes.installation import Installation, until

PATIENCE_S = 180.0
"""Pods are processes, on a machine that may be busy."""
pytestmark = [pytest.mark.e2e, pytest.mark.kube_server, pytest.mark.slow]


def test_a_spec_is_served_by_pods_and_changes_lose_no_request(lab: Installation) -> None:
    lab.start(lab.endpoint(replicas=2))
    status = lab.system.wait_ready(PATIENCE_S)

    assert {one["state"] for one in replicas(status, "digits")} == {"ready"}
    assert {one["name"] for one in replicas(status, "digits")} == set(lab.pods())
    with Traffic(lab.system, "digits").flowing() as traffic:
        for endpoint in (lab.endpoint(replicas=3), lab.endpoint(replicas=1), lab.endpoint(2)):
            lab.apply({"version": 1, "endpoints": [endpoint]})
            lab.system.wait_for(serves(count := endpoint.get("replicas", 1)), PATIENCE_S)
            until(lambda: len(lab.pods()) == count)  # bound while it waits
        until(lambda: traffic.versions[-1:] == ["2"])

    assert traffic.failures == []
    assert set(traffic.versions) == {"1", "2"}


def test_replicas_elsewhere_tell_how_they_are(lab: Installation) -> None:
    lab.start(lab.endpoint())
    lab.system.wait_ready(PATIENCE_S)
    lab.system.infer("digits")

    status = lab.system.wait_for(
        lambda now: all(one["device"] for one in replicas(now, "digits")), 20.0
    )
    assert replicas(status, "digits")[0]["address"].startswith("198.18.")
    text = lab.system.call("GET", lab.system.where().metrics_url)[1]
    assert f'replica="{lab.pods()[0]}"' in text


def test_a_control_plane_stands_by_until_the_first_one_ends(lab: Installation) -> None:
    spec = lab.folder / "headrace.yaml"
    spec.write_text(f"endpoints: [{{name: digits, model: {lab.model(1)}}}]")
    lab.start(lab.endpoint(), drain_timeout_s=30.0)
    lab.system.wait_ready(PATIENCE_S)
    before, deployed = lab.pods(), lab.generations()
    (port,) = pick_ports("127.0.0.1", {"admin": 0}).values()
    health = f"http://127.0.0.1:{port}/api/v1/health"
    options = {
        "--driver": "kubernetes",
        "--namespace": lab.namespace.name,
        "--identity": "control-b",
        "--artifacts": lab.store_url,
        "--internal-secret": "headrace-internal",
        "--image-registry": "registry.test",
        "--home": str(lab.folder / "other"),
        "--admin-port": str(port),
        **dict.fromkeys(("--http-port", "--grpc-port", "--metrics-port"), "0"),
    }
    arguments = [part for option in options.items() for part in option]
    other = System(lab.folder / "other")
    with other.log.open("ab") as log:
        other.process = subprocess.Popen(
            [sys.executable, "-m", "headrace.cli", "control", str(spec), *arguments], stderr=log
        )
    try:
        until(lambda: other.call("GET", health) == (200, {"alive": True}))
        # It has to read the Lease first.
        standby = {"message": "this control plane is on standby: control-a leads"}
        until(lambda: other.call("GET", f"{health}?leader") == (503, standby))
        assert lab.system.end_control() == 0
        other.wait_ready(PATIENCE_S)

        assert other.call("GET", f"{health}?leader")[0] == 200
        assert other.infer("digits")[0] == 200
        # Its home is another folder; its revisions are the same, so that nothing is replaced.
        status = other.wait_for(lambda now: bool(replicas(now, "digits")))
        assert [one["name"] for one in replicas(status, "digits")] == before
        assert other.end_control() == 0
        assert (lab.pods(), lab.generations()) == (before, deployed)
    finally:
        other.close()


def test_routes_that_a_laptop_exports_lead_to_the_services_of_the_cluster(
    lab: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.start(lab.endpoint(batching={"max_batch_size": 8}))
    lab.system.wait_ready(PATIENCE_S)
    laptop = lab.folder / "laptop"
    Registry(laptop, inspect_model).push("digits", Path(lab.model(1)))
    spec = lab.folder / "headrace.yaml"
    endpoint = "{name: digits, model: 'digits:1', access: public, batching: {max_batch_size: 8}}"
    spec.write_text(f"endpoints: [{endpoint}]")

    done = main(
        ["export", "gateway-api", "-f", str(spec), "--home", str(laptop), "--format", "json"]
    )

    told = capsys.readouterr()
    assert done == 0, told.err
    services = [one["metadata"]["name"] for one in lab.namespace.list("Service")]
    assert set(re.findall(r'"(headrace-digits-[^"]*)"', told.out)) == set(services) != set()
    assert "is taken to be called" not in told.err


def serves(count: int) -> Callable[[Any], bool]:
    """Whether a status is of so many replicas, and all is ready."""
    return lambda now: now["ready"] and len(replicas(now, "digits")) == count


def test_what_a_cluster_cannot_run_is_told_in_the_status(lab: Installation) -> None:
    hosted = lab.endpoint(seed=3) | {"name": "hosted", "pool": "small"}
    spec = {"version": 1, "pools": [{"name": "small"}], "endpoints": [lab.endpoint(), hosted]}
    lab.start(spec=spec, has_token=False)
    status = lab.system.wait_for(
        lambda now: any(each["ready"] for each in now["endpoints"]), PATIENCE_S
    )

    told = {each["name"]: each for each in status["endpoints"]}
    assert told["digits"]["ready"]
    assert told["hosted"]["failed"]
    assert "--internal-secret" in told["hosted"]["message"]
