"""Servers that someone else runs are spoken to only by the right certificates, on both sides."""

import contextlib
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from headrace.client import Client
from headrace.core.spec.access import TlsSpec
from headrace.testing import models
from tests.certificates import Authority, Files, now
from tests.e2e.control.system import System
from tests.e2e.gateway.lab import UP_WITHIN_S
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
READY_S = 15.0


@dataclass
class Theirs:
    """A server that wants certificates of `authority`'s clients, and a gateway to it."""

    folder: Path
    system: System
    authority: Authority
    server: Files
    client: Files
    port: int = field(default_factory=free_port)
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def run(self, dialect: str = "v2") -> None:
        script = Path(__file__).with_name("foreign.py")
        tls = map(str, (*self.server.both, self.authority.ca))
        with (self.folder / "foreign.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, str(script), str(self.port), "them", dialect, *tls], stderr=log
            )
        self.processes.append(process)
        deadline = time.monotonic() + UP_WITHIN_S
        while not self._listens():
            assert process.poll() is None, "the foreign server ended"
            assert time.monotonic() < deadline, "the foreign server does not come up"
            time.sleep(0.02)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def seen(self) -> list[Any]:
        """Every request for the model that reached it."""
        context = ssl.create_default_context(cafile=self.authority.ca)
        context.load_cert_chain(*self.authority.client("test").both)
        found: list[Any] = httpx.get(f"https://localhost:{self.port}/seen", verify=context).json()
        return found

    def start(self, protocol: str = "v2", **tls: Any) -> None:
        scheme = "grpcs" if protocol == "grpc" else "https"
        upstream: dict[str, Any] = {
            "url": f"{scheme}://localhost:{self.port}",
            "protocol": protocol,
            "model": "their/model",
            "health_interval_s": 0.2,
            "tls": {
                "ca_file": str(self.authority.ca),
                "certificate_file": str(self.client.certificate),
                "key_file": str(self.client.key),
                **tls,
            },
        }
        upstream["tls"] = {key: value for key, value in upstream["tls"].items() if value}
        self.system.start({"name": "m", "upstream": upstream}, first_request=False)

    def says(self, text: str) -> str:
        """What the status says of the endpoint, once it says `text`."""
        status = self.system.wait_for(
            lambda status: any(text in one["message"] for one in status["endpoints"]), READY_S
        )
        message: str = status["endpoints"][0]["message"]
        return message

    def ask(self) -> int:
        url = f"{self.system.where().http_url}/v2/models/m/infer"
        return httpx.post(url, json={}).status_code

    def refuses(self) -> None:
        """Return once callers are told 503; until the gateway knows the endpoint, it is 404."""
        deadline = time.monotonic() + UP_WITHIN_S
        while (status := self.ask()) == 404:
            assert time.monotonic() < deadline, "the gateway does not hear of the endpoint"
            time.sleep(0.02)
        assert status == 503


@pytest.fixture
def theirs() -> Iterator[Theirs]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        folder = Path(directory)
        authority = Authority(folder / "certs")
        theirs = Theirs(
            folder,
            System(folder / "home"),
            authority,
            authority.server("server", "localhost"),
            authority.client("gateway"),
        )
        try:
            yield theirs
        finally:
            theirs.system.close()
            theirs.end()


def test_both_sides_show_a_certificate(theirs: Theirs) -> None:
    theirs.run()
    theirs.start()
    theirs.system.wait_for(lambda status: status["ready"] and theirs.ask() == 200, READY_S)

    assert [one["path"] for one in theirs.seen()][-1] == "/v2/models/their/model/infer"
    certificates = theirs.system.status()["gateway"]["certificates"]
    assert [one["what"] for one in certificates] == [
        "the authorities of the upstream of 'm'",
        "the certificate for the upstream of 'm'",
    ]


@pytest.mark.long
def test_grpc_goes_on_encrypted_with_a_certificate(theirs: Theirs) -> None:
    theirs.run("grpc")
    theirs.start("grpc")
    theirs.system.wait_for(lambda status: status["ready"], READY_S)
    rows = {"x": np.zeros((1, 1), np.float32)}
    with Client(f"grpc://{theirs.system.where().grpc_target}") as client:
        # The first health check may still be on its way, and the client is patient.
        answer = client.infer("m", rows, timeout_s=READY_S).model_version

    assert answer == "them"


@pytest.mark.long
def test_a_server_of_another_authority_gets_no_request(theirs: Theirs) -> None:
    other = Authority(theirs.folder / "other")
    theirs.run()
    theirs.start(ca_file=str(other.ca))

    message = theirs.says("not signed by the authorities")

    theirs.refuses()
    assert theirs.seen() == []
    assert f"upstream https://localhost:{theirs.port}" in message


@pytest.mark.long
def test_a_server_of_another_name_gets_no_request(theirs: Theirs) -> None:
    theirs.run()
    theirs.start(server_name="elsewhere.example")

    theirs.says("its certificate is not for 'elsewhere.example'")

    theirs.refuses()
    assert theirs.seen() == []


@pytest.mark.long
def test_a_server_that_expired_gets_no_request(theirs: Theirs) -> None:
    theirs.server = theirs.authority.server("server", "localhost", at=now() - 9e6, days=1)
    theirs.run()
    theirs.start()

    theirs.says("or expired")

    theirs.refuses()


@pytest.mark.long
@pytest.mark.parametrize("shown", ["none", "stranger"])
def test_a_server_that_refuses_us_is_told_of_until_it_takes_us(theirs: Theirs, shown: str) -> None:
    theirs.run()
    if shown == "none":
        theirs.start(certificate_file="", key_file="")
        theirs.says("requires a client certificate")
        theirs.refuses()
        return
    good = theirs.client
    theirs.client = Authority(theirs.folder / "other").client("gateway")
    theirs.start()
    theirs.says("or another one")
    theirs.refuses()

    theirs.client.replace_by(good)

    theirs.system.wait_for(lambda status: status["ready"] and theirs.ask() == 200, READY_S)


@pytest.mark.long
def test_what_of_ours_is_no_good_is_told_and_taken_once_it_is(theirs: Theirs) -> None:
    week_s = 7 * 86_400.0
    theirs.client.replace_by(theirs.authority.client("old", days=1.0, at=now() - week_s))
    theirs.run()
    theirs.start()

    message = theirs.says("the certificate expired")
    theirs.refuses()
    assert theirs.seen() == []

    theirs.client.replace_by(theirs.authority.client("new"))
    theirs.system.wait_for(lambda status: status["ready"] and theirs.ask() == 200, READY_S)
    assert str(theirs.client.certificate) in message


@pytest.mark.long
def test_authorities_are_replaced_without_a_failed_request(theirs: Theirs) -> None:
    theirs.run()
    theirs.start()
    theirs.system.wait_for(lambda status: status["ready"] and theirs.ask() == 200, READY_S)
    statuses = []
    other = Authority(theirs.folder / "other")
    both = theirs.authority.ca.read_bytes() + other.ca.read_bytes()
    mine = theirs.authority.ca.with_suffix(".new")
    for turn in range(40):
        if turn == 10:
            mine.write_bytes(both)
            mine.replace(theirs.authority.ca)
        statuses.append(theirs.ask())
        time.sleep(0.02)
    events = theirs.system.get("/api/v1/events")["events"]

    assert set(statuses) == {200}
    assert "CertificateReplaced" in [event["reason"] for event in events]


@pytest.mark.long
def test_certificates_of_an_upstream_that_left_are_removed(theirs: Theirs, tmp_path: Path) -> None:
    theirs.run()
    theirs.start()
    theirs.system.wait_for(lambda status: status["ready"], READY_S)
    envoy = theirs.system.home / "run" / "envoy"
    before = sorted(path.name[:16] for path in envoy.glob("sds-*"))
    model = tmp_path / "n.onnx"
    model.write_bytes(models.mlp())
    spec = {"version": 1, "endpoints": [{"name": "n", "model": str(model)}]}
    theirs.system.post("/api/v1/apply", spec)
    theirs.system.wait_for(
        lambda status: status["ready"] and not list(envoy.glob("sds-*")), READY_S
    )

    assert before == ["sds-upstream-aut", "sds-upstream-cer"]


@pytest.mark.long
def test_one_system_stands_behind_another_and_is_ready_once_it_is_shown_who_calls(
    theirs: Theirs,
) -> None:
    model = theirs.folder / "m.onnx"
    model.write_bytes(models.mlp())
    behind = System(theirs.folder / "behind")
    tls = TlsSpec(
        certificate_file=str(theirs.server.certificate),
        key_file=str(theirs.server.key),
        client_ca_file=str(theirs.authority.ca),
        require_client_certificate=True,
    )
    good = theirs.client
    theirs.client = Authority(theirs.folder / "other").client("gateway")
    upstream = {
        "health_interval_s": 0.2,
        "tls": {
            "ca_file": str(theirs.authority.ca),
            "certificate_file": str(theirs.client.certificate),
            "key_file": str(theirs.client.key),
        },
    }
    try:
        behind.start({"name": "m", "model": str(model)}, tls=tls)
        behind.wait_ready()
        port = behind.where().http_url.rpartition(":")[2]
        url = f"https://localhost:{port}"
        theirs.system.start({"name": "m", "upstream": {"url": url, **upstream}})
        theirs.says("or another one")
        theirs.system.wait_for(lambda status: status["endpoints"][0]["failed"], READY_S)

        theirs.client.replace_by(good)

        theirs.system.wait_ready(READY_S)
        status, answer = theirs.system.infer("m")
    finally:
        behind.close()

    assert (status, answer["model_name"]) == (200, "m")
