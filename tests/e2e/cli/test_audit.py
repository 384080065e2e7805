"""`headrace audit` of a system that really runs, seen from its machine and from elsewhere."""

import json
import urllib.request
from pathlib import Path

import pytest

from tests.e2e.cli.conftest import PORTS, MakeShell, Shell

pytestmark = pytest.mark.e2e

SPEC = """\
endpoints:
  - name: fraud
    model: ./mlp.onnx
    access: public
    limits: {requests_per_s: 100}
"""


@pytest.fixture(scope="module")
def running(make_shell: MakeShell) -> Shell:
    shell = make_shell()
    (shell.folder / "headrace.yaml").write_text(SPEC)
    started = shell.run("up", "headrace.yaml", "--detach", "--log-level", "debug", *PORTS)
    assert started.returncode == 0, started.stderr
    return shell


def audit(shell: Shell, *arguments: str | Path) -> dict[str, dict[str, str]]:
    """The first finding of each check."""
    done = shell.run("audit", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    found: dict[str, dict[str, str]] = {}
    for finding in document["findings"]:
        found.setdefault(finding["id"], finding)
    return found


def test_a_running_system_is_audited_with_its_machine(running: Shell) -> None:
    done = running.run("audit", "--json")

    document = json.loads(done.stdout)
    found = {finding["id"]: finding for finding in document["findings"]}
    assert found["HR002"]["where"] == "endpoints[0].access"
    assert found["HR202"]["severity"] == "low"
    assert "mlp.onnx" in found["HR405"]["evidence"]
    assert "debug" in found["HR512"]["evidence"]
    # Its addresses, files and versions were seen, and are as they should be.
    seen = {"HR501", "HR502", "HR503", "HR505", "HR506", "HR507", "HR508", "HR509", "HR101"}
    assert seen <= set(document["passed"])
    assert "envoy" not in {one["where"] for one in document["findings"] if one["id"] == "HR601"}


@pytest.mark.long
def test_metrics_that_nobody_reads_are_a_finding_until_somebody_does(running: Shell) -> None:
    before = audit(running)
    address = json.loads(running.run("status", "--json").stdout)["addresses"]["metrics"]

    token = running.home / "admin-token"
    given = {"authorization": f"Bearer {token.read_text().strip()}"} if token.exists() else {}
    asked = urllib.request.Request(address, headers=given)  # noqa: S310  # ours, on loopback
    with urllib.request.urlopen(asked, timeout=10) as answer:  # noqa: S310  # as above
        assert answer.read()

    assert before["HR310"]["evidence"] == "/metrics has not been read since the start"
    assert "HR310" not in audit(running)


@pytest.mark.long
def test_faults_of_its_files_are_found_and_gone_when_mended(running: Shell) -> None:
    home, state = running.home, running.home / "state.db"
    before = set(audit(running))

    for file, mode in ((home, 0o755), (state, 0o644)):
        file.chmod(mode)
    spoiled = audit(running)
    home.chmod(0o700)
    state.chmod(0o600)

    assert set(spoiled) - before == {"HR505", "HR506"}
    assert spoiled["HR506"]["fix"] == f"chmod 600 {state}"
    assert set(audit(running)) == before


@pytest.mark.long
def test_it_fails_when_asked_to(running: Shell) -> None:
    assert running.run("audit", "--fail-on", "medium").returncode == 3
    assert running.run("audit", "--fail-on", "critical").returncode == 0


@pytest.mark.long
def test_from_elsewhere_only_what_the_api_says_is_audited(running: Shell) -> None:
    address = json.loads(running.run("status", "--json").stdout)["addresses"]["admin"]
    running.environment["HEADRACE_TOKEN_FILE"] = str(running.home / "admin-token")

    done = running.run("audit", "--server", address, "--json")

    document = json.loads(done.stdout)
    missing = {one["id"]: one["reason"] for one in document["not_checked"]}
    assert "HR002" in {finding["id"] for finding in document["findings"]}
    assert "on another machine" in missing["HR510"]
    assert document["target"] == address
