"""The hardened example with its files, made once, and what is known of it when it runs well."""

import runpy
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from headrace.advise.audit.collect import collect_spec_file
from headrace.advise.audit.facts import (
    ApiKeyFact,
    AuditFacts,
    FileFact,
    HomeFacts,
    InForceFact,
    Listener,
    ProcessFact,
    ReplicaFact,
    TokenFact,
    VersionFact,
)

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "hardened"
NOW = datetime.now(UTC) + timedelta(hours=6)
"""Later than the certificates that the tests make, however long after the import that is."""


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's folder after `make.py`."""
    folder = tmp_path_factory.mktemp("hardened")
    shutil.copy(EXAMPLE / "headrace.yaml", folder)
    (folder / "headrace.yaml").chmod(0o644)
    runpy.run_path(str(EXAMPLE / "make.py"))["main"](folder)
    return folder


@pytest.fixture
def hardened(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoiled; modes are kept."""
    return shutil.copytree(made, tmp_path / "hardened")


@pytest.fixture(scope="session")
def healthy(made: Path) -> AuditFacts:
    """Everything that can be known of a system that runs the example as it should."""
    return as_running(collect_spec_file(made / "headrace.yaml", now=NOW))


def server_certificate(facts: AuditFacts) -> str:
    tls = facts.spec.gateway.tls
    return "" if tls is None else tls.certificate_file


def as_running(facts: AuditFacts) -> AuditFacts:
    """`facts` of a spec, and all that a running system would add, as it should be."""
    return replace(
        facts,
        listeners=(
            *facts.listeners,
            Listener(role="management", host="127.0.0.1", port=8080),
            Listener(role="metrics", host="::1", port=8002),
        ),
        keys=(
            ApiKeyFact(
                name="notebook",
                scopes=("infer:digits",),
                created=NOW - timedelta(days=10),
                expires=NOW + timedelta(days=80),
                last_used=NOW - timedelta(days=1),
                records_use=True,
            ),
        ),
        tokens=(TokenFact(id="t1", owner="ci", expires=NOW + timedelta(days=9)),),
        replicas=(ReplicaFact(name="digits-1-1", not_isolated=()),),
        in_force=(InForceFact(name="gateway", file=server_certificate(facts)),),
        versions=(VersionFact(reference="digits:1", runtime="onnx", signed=True, is_served=True),),
        processes=(
            ProcessFact(name="control plane", pid=10, uid=1000, core_bytes=0),
            ProcessFact(name="gateway", pid=11, uid=1000, core_bytes=0),
        ),
        home=HomeFacts(
            home=FileFact(path="/srv/headrace", mode=0o700),
            state=FileFact(path="/srv/headrace/state.db", mode=0o600),
            admin_token=FileFact(path="/srv/headrace/admin.token", mode=0o600),
            sockets=(FileFact(path="/srv/headrace/run/envoy/admin.sock", mode=0o600),),
            file_system="ext4",
            log_level="info",
        ),
        software={
            "python": "3.13.9",
            "openssl": "3.5.4",
            "envoy": "1.40.0",
            "onnxruntime": "1.32.0",
        },
        packages={"httptools": "0.9.0"},
        scraped_s_ago=15.0,
        missing={},
    )
