"""The management API and the metrics are encrypted, and never leave this machine in plain text."""

import json
import ssl
import time
import urllib.request
from pathlib import Path

import pytest

from headrace.cli.base.management import Management
from headrace.control import ControlFile, start_detached
from headrace.core import FailedPreconditionError, UnavailableError
from headrace.core.spec.access import TlsSpec
from tests.certificates import Authority, Files
from tests.e2e.control.system import System
from tests.e2e.gateway.test_tls import names_at

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
TIMEOUT_S = 30.0


def _tls(files: Files) -> TlsSpec:
    return TlsSpec(certificate_file=str(files.certificate), key_file=str(files.key))


def _start(system: System, files: Files) -> ControlFile:
    settings = system.settings(admin_tls=_tls(files))
    return start_detached(settings, timeout_s=TIMEOUT_S)


def _port(url: str) -> int:
    return int(url.removesuffix("/metrics").rpartition(":")[2])


def test_management_and_metrics_are_encrypted_and_renewed_while_they_serve(
    system: System, tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    files = authority.server("admin", "localhost", "127.0.0.1")
    where = _start(system, files)
    pinned = Management(where.admin_url, token=system.token(), pinned=where.admin_ca)
    before = pinned.get("/api/v1/status")["gateway"]["certificates"]
    context = ssl.create_default_context(cafile=authority.ca)
    with urllib.request.urlopen(where.metrics_url, context=context, timeout=5) as answer:  # noqa: S310  # loopback
        metrics = answer.read().decode()

    files.replace_by(authority.server("new", "elsewhere.example"))
    began = time.monotonic()
    while "elsewhere.example" not in names_at(_port(where.admin_url), authority.ca):
        assert time.monotonic() - began < TIMEOUT_S
        time.sleep(0.02)
    took_s = time.monotonic() - began
    after = pinned.get("/api/v1/status")["gateway"]["certificates"]
    also = names_at(_port(where.metrics_url), authority.ca)

    assert where.admin_url.startswith("https://")
    assert where.metrics_url.startswith("https://")
    assert [one["name"] for one in before] == ["admin"]
    assert 'certificate_left_seconds{certificate="admin"}' in metrics
    assert took_s < 1.0
    assert after[0]["names"] == ["elsewhere.example"]
    assert also == {"elsewhere.example"}


@pytest.mark.long
def test_another_certificate_is_not_trusted_and_plain_text_not_answered(
    system: System, tmp_path: Path
) -> None:
    where = _start(system, Authority(tmp_path).server("admin"))
    other = Authority(tmp_path / "other").server("admin")

    with pytest.raises(UnavailableError, match="CERTIFICATE_VERIFY_FAILED"):
        Management(where.admin_url, pinned=str(other.certificate)).get("/api/v1/status")
    with pytest.raises(UnavailableError):
        Management(where.admin_url.replace("https", "http")).get("/api/v1/status")


@pytest.mark.long
def test_beyond_this_machine_plain_text_has_to_be_asked_for(system: System, tmp_path: Path) -> None:
    open_to_all = {"admin_host": "0.0.0.0"}  # noqa: S104  # what is tested

    with pytest.raises(FailedPreconditionError, match="--admin-tls-cert") as caught:
        start_detached(system.settings(**open_to_all), timeout_s=TIMEOUT_S)
    plain = start_detached(system.settings(**open_to_all, insecure_admin=True), timeout_s=TIMEOUT_S)
    Management(plain.admin_url, token=system.token()).post("/api/v1/stop")
    deadline = time.monotonic() + TIMEOUT_S
    while (system.home / "run" / "control.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    files = Authority(tmp_path).server("admin")
    encrypted = start_detached(
        system.settings(**open_to_all, admin_tls=_tls(files)), timeout_s=TIMEOUT_S
    )

    assert "--insecure-admin" in str(caught.value)
    assert plain.admin_url.startswith("http://127.0.0.1:")
    assert encrypted.admin_url.startswith("https://127.0.0.1:")


@pytest.mark.long
def test_no_file_shows_the_key(system: System, tmp_path: Path) -> None:
    files = Authority(tmp_path).server("admin")
    _start(system, files)
    secret = files.key.read_text().splitlines()[1].encode()

    holding = [
        path for path in system.home.rglob("*") if path.is_file() and secret in path.read_bytes()
    ]

    assert holding == []
    assert "PRIVATE" not in json.dumps(
        Management(
            system.where().admin_url,
            token=system.token(),
            pinned=str(system.home / "run" / "admin-certificate.pem"),
        ).get("/api/v1/status")
    )
