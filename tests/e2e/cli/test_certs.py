"""From nothing to an encrypted system by two commands, and callers that check it."""

import json
import re
import shutil
import ssl
import subprocess
import urllib.request

import pytest

from headrace.testing import models
from tests.e2e.cli.conftest import PORTS, Shell

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]


@pytest.mark.skipif(shutil.which("curl") is None, reason="asks with curl")
def test_a_local_authority_is_enough_for_everybody_on_this_machine(shell: Shell) -> None:
    (shell.folder / "m.onnx").write_bytes(models.mlp())
    made = shell.run("certs", "dev", "--client", "app")
    tls = ("--tls-cert", "certs/server.pem", "--tls-key", "certs/server-key.pem")
    clients = ("--client-ca", "certs/ca.pem", "--require-client-cert")
    admin = ("--admin-tls-cert", "certs/server.pem", "--admin-tls-key", "certs/server-key.pem")
    up = shell.run("up", "m.onnx", "--detach", "--json", *PORTS, *tls, *clients, *admin)
    assert up.returncode == 0, up.stderr
    where = json.loads(up.stdout)
    port = where["http_url"].rpartition(":")[2]
    url = f"https://localhost:{port}"

    app = ("--cert", "certs/app.pem", "--key", "certs/app-key.pem")
    curl = subprocess.run(  # ours
        [
            *("curl", "--silent", "--cacert", "certs/ca.pem", *app),
            *("--write-out", " %{http_code} %{http_version}", f"{url}/v2/models/m"),
        ],
        cwd=shell.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    context = ssl.create_default_context(cafile=shell.folder / "certs" / "ca.pem")
    context.load_cert_chain(
        shell.folder / "certs" / "app.pem", shell.folder / "certs" / "app-key.pem"
    )
    with urllib.request.urlopen(f"{url}/v2/models/m", context=context, timeout=10) as answer:  # noqa: S310  # loopback
        by_python = answer.status
    refused = shell.run("infer", "m")
    mine = ("--cert", "certs/app.pem", "--cert-key", "certs/app-key.pem")
    by_home = shell.run("infer", "m", *mine, "-o", "json")
    by_grpc = shell.run(
        *("infer", "m", *mine, "-o", "json"),
        *("--url", f"grpcs://localhost:{port}", "--ca-file", "certs/ca.pem"),
    )
    status = shell.run("status")
    shown = shell.run("certs", "show", f"localhost:{port}", "--json")
    again = shell.run("up", "m.onnx", "--name", "n")
    shell.environment["HEADRACE_TOKEN"] = shell.run("token", "show").stdout.strip()
    remote = shell.run("status", "--server", where["admin_url"])
    shell.environment["HEADRACE_CA_FILE"] = "certs/ca.pem"
    trusted = shell.run("status", "--server", where["admin_url"])
    down = shell.run("down")

    assert "curl --cacert certs/ca.pem" in made.stderr
    assert curl.stdout.endswith(" 200 2"), curl.stderr
    assert by_python == 200
    assert refused.returncode == 1
    assert "client certificate" in refused.stderr
    assert json.loads(by_home.stdout)["model_name"] == "m", by_home.stderr
    assert json.loads(by_grpc.stdout)["model_name"] == "m", by_grpc.stderr
    # The machine's own name comes first, where it has another.
    assert re.search(r"the gateway's certificate: .*\blocalhost\b", status.stdout)
    assert "grpcs://127.0.0.1:" in status.stdout
    assert json.loads(shown.stdout)[0]["names"][:2] == ["localhost", "127.0.0.1"]
    assert again.returncode == 0, again.stderr
    assert "headrace infer n" in again.stdout
    assert remote.returncode == 3
    assert "CERTIFICATE_VERIFY_FAILED" in remote.stdout + remote.stderr
    assert trusted.returncode == 0, trusted.stderr
    assert down.returncode == 0
