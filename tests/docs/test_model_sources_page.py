"""The commands of the page on sources of models, run with servers on loopback."""

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest

from headrace.testing import models
from tests.contract.s3_servers import NoServerError, S3Server, make_bucket, running_moto
from tests.docs.test_pages import BIN, ROOT, blocks
from tests.source_servers import FileServer, Hub, HubRepository, Served, https_server

pytestmark = [pytest.mark.e2e, pytest.mark.long]

PAGE = ROOT / "docs" / "how-to" / "model-sources.md"
MODEL = models.matmul()


@pytest.fixture
def moto() -> Iterator[S3Server]:
    try:
        with running_moto() as server:
            make_bucket(server, "models")
            obstore.put(server.store("models"), "fraud/model.onnx", MODEL)
            yield server
    except NoServerError as error:
        pytest.skip(str(error))


def _publish(registry: FileServer, repository: str, tag: str) -> None:
    digest = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
    title = {"org.opencontainers.image.title": "digits.onnx"}
    layer = {"mediaType": "application/octet-stream", "digest": digest, "size": len(MODEL)}
    manifest = {"schemaVersion": 2, "layers": [{**layer, "annotations": title}]}
    base = f"/v2/{repository}"
    registry.resources[f"{base}/manifests/{tag}"] = Served(body=json.dumps(manifest).encode())
    registry.resources[f"{base}/blobs/{digest}"] = Served(body=MODEL)


def test_commands_of_the_page_work(moto: S3Server, tmp_path: Path) -> None:
    with (
        FileServer().running() as registry,
        FileServer().running() as cdn,
        Hub(cdn).running() as hub,
        https_server(tmp_path / "ca") as (web, authority),
    ):
        assert isinstance(hub, Hub)
        hub.repositories["acme/sentiment"] = HubRepository(files={"model.onnx": MODEL})
        web.resources["/churn.onnx"] = Served(body=MODEL, etag='"1"')
        _publish(registry, "acme/digits", "1.2")
        hosts = {"ghcr.io": f"127.0.0.1:{registry.port}", "https://models.example.com": web.url}
        environment = {
            **os.environ,
            **moto.environment(),
            "HF_ENDPOINT": hub.url,
            "SSL_CERT_FILE": str(authority),
            "HEADRACE_HOME": str(tmp_path / "home"),
            **{f"HEADRACE_{port}_PORT": "0" for port in ("HTTP", "GRPC", "METRICS", "ADMIN")},
        }

        def run(*command: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(  # noqa: S603  # what our own page shows
                [BIN / command[0], *command[1:]],
                env=environment,
                cwd=tmp_path,
                check=False,
                capture_output=True,
                text=True,
                timeout=120,
            )

        try:
            lines = [
                line
                for block in blocks(PAGE)
                if block.language == "console"
                for line in block.text.splitlines()
            ]
            assert len(lines) >= 6
            for line in lines:
                for host, here in hosts.items():
                    line = line.replace(host, here)  # noqa: PLW2901  # each host in turn
                done = run(*line.split())
                assert done.returncode == 0, f"{line}\n{done.stderr}"
            (spec,) = [block for block in blocks(PAGE) if block.language == "yaml"]
            (tmp_path / "headrace.yaml").write_text(spec.text)
            applied = run("headrace", "apply", "-f", "headrace.yaml", "--wait", "--yes")
            assert applied.returncode == 0, applied.stderr
            assert "hf://acme/sentiment@v1 is sentiment:1" in applied.stderr
        finally:
            run("headrace", "down")
