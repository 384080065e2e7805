"""A plain Envoy with the exported file takes it, and serves as our own gateway does."""

import ssl
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from ruamel.yaml import YAML
from tritonclient.utils import InferenceServerException
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.gateway import EnvoySettings
from headrace.gateway.binary import find_envoy
from tests import digits_net
from tests.certificates import Authority
from tests.e2e.replicas import Replica, running
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_CORP: Final = {
    "name": "corp",
    "issuer": "https://id.test",
    "audiences": ["models"],
    "jwks_url": "https://id.test/keys",
}
_SPECS: Final[dict[str, dict[str, Any]]] = {
    "tokens and tiers": {
        "auth": {"jwt": [_CORP, {**_CORP, "name": "other", "issuer": "https://other.test"}]},
        "access": ["jwt:corp"],
        "tiers": [{"name": "gold", "requests_per_s": 9, "priority": 3}],
        "limits": {"requests_per_s": 5, "per_caller": {"requests_per_s": 1, "burst": 4}},
    },
    "sticky by claim": {"sticky": {"claim": "sub"}, "timeout_s": None},
    "sticky by cookie": {"sticky": {"cookie": "user"}},
    "traces": {"tracing": {"collector": "http://127.0.0.1:4318"}},
    "another's server": {},
}
_REQUESTS: Final = 400
_READY_WITHIN_S: Final = 20.0


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Replica, Replica]]:
    """Two versions of one model, each in a replica of its own."""
    folder = tmp_path_factory.mktemp("replicas")
    model = digits_net.write(folder)
    with (
        running(folder, model, model_name="digits", model_version="1") as first,
        running(folder, model, model_name="digits", model_version="2") as second,
    ):
        yield first, second


def _spec(folder: Path, ports: tuple[int, int], **endpoint: Any) -> Path:  # as a file has it
    document: dict[str, Any] = {
        "version": 1,
        "gateway": {
            "http_port": ports[0],
            "grpc_port": ports[1],
            "request_log": {"mode": "all"},
            **endpoint.pop("gateway", {}),
        },
        **{key: endpoint.pop(key) for key in ("auth", "tiers", "tracing") if key in endpoint},
        "endpoints": [
            {
                "name": "digits",
                "versions": [
                    {"model": "digits:1", "weight": 75},
                    {"model": "digits:2", "weight": 25},
                ],
                **endpoint,
            }
        ],
    }
    file = folder / "headrace.yaml"
    with file.open("w") as stream:
        YAML(typ="safe").dump(document, stream)
    return file


def _export(folder: Path, spec: Path, versions: tuple[Replica, Replica]) -> Path:
    run_dir = folder / "run"
    run_dir.mkdir(mode=0o700, exist_ok=True)
    target = folder / "envoy.yaml"
    replicas = [
        argument
        for number, replica in enumerate(versions, 1)
        for argument in ("--replica", f"digits:{number}=127.0.0.1:{replica.port}")
    ]
    arguments = ["export", "envoy", "-f", str(spec), *replicas, "--run-dir", str(run_dir)]
    result = CliRunner().invoke(app, [*arguments, "-o", str(target)])
    assert result.exit_code == 0, result.output
    return target


def _envoy(folder: Path, *arguments: str) -> list[str]:
    binary = find_envoy(EnvoySettings(run_dir=folder / "unused"))
    return [str(binary), "--disable-hot-restart", "--concurrency", "1", *arguments]


@contextmanager
def _serving(folder: Path, config: Path, port: int, scheme: str = "http") -> Iterator[None]:
    log = folder / "envoy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            _envoy(folder, "-c", str(config), "--log-level", "warning"),
            stdout=output,
            stderr=output,
        )
    try:
        until = time.monotonic() + _READY_WITHIN_S
        url = f"{scheme}://127.0.0.1:{port}/v2/health/ready"
        while time.monotonic() < until and process.poll() is None:
            try:
                if httpx.get(url, verify=False).status_code == 200:  # noqa: S501  # only whether it runs
                    break
            except httpx.TransportError:
                time.sleep(0.05)
        else:
            raise AssertionError(log.read_text())
        yield
    finally:
        process.terminate()
        process.wait(20)


def _input(kind: Any) -> Any:  # tritonclient has no types
    pictures, _ = digits_net.pictures()
    rows = np.asarray(pictures[:2], dtype=np.float32)
    tensor = kind.InferInput("image", list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    return tensor


def test_envoy_splits_by_weight_and_answers_http_and_grpc(
    tmp_path: Path, versions: tuple[Replica, Replica]
) -> None:
    ports = (free_port(), free_port())
    config = _export(tmp_path, _spec(tmp_path, ports), versions)
    checked = subprocess.run(
        _envoy(tmp_path, "--mode", "validate", "-c", str(config)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr

    with _serving(tmp_path, config, ports[0]):
        with triton_http.InferenceServerClient(f"127.0.0.1:{ports[0]}") as client:
            tensor = _input(triton_http)
            answers = [client.infer("digits", [tensor]) for _ in range(_REQUESTS)]
            counts = Counter(answer.get_response()["model_version"] for answer in answers)
            named = client.infer("digits", [tensor], model_version="2").get_response()
            assert client.is_model_ready("digits")
            with pytest.raises(InferenceServerException, match="unknown model"):
                client.infer("nobody", [tensor])
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{ports[1]}") as client:
            tensor = _input(triton_grpc)
            mine = Counter(
                client.infer("digits", [tensor]).get_response().model_version
                for _ in range(_REQUESTS)
            )
            one = client.infer("digits", [tensor], model_version="1").get_response()
            with pytest.raises(InferenceServerException) as caught:
                client.infer("digits", [tensor], model_version="9")

    # Binomial with 400 draws of 1/4: five standard deviations are 43.
    for count in (counts, mine):
        assert set(count) == {"1", "2"}
        assert abs(count["2"] - _REQUESTS / 4) < 45
    assert named["model_version"] == "2"
    assert one.model_version == "1"
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    lines = (tmp_path / "run" / "access.log").read_text().splitlines()
    assert len(lines) >= 2 * _REQUESTS


@pytest.mark.parametrize("said", list(_SPECS))
def test_envoy_takes_whatever_a_spec_says(
    said: str, tmp_path: Path, versions: tuple[Replica, Replica]
) -> None:
    authority = Authority(tmp_path / "ca")
    more = dict(_SPECS[said])
    if said == "another's server":
        tls = {"ca_file": str(authority.ca)}
        rows = [{"model": "digits:1", "weight": 90}, {"model": "digits:2", "weight": 5}]
        rows.append(
            {"upstream": {"url": "https://m.test", "tls": tls}, "version": "3", "weight": 5}
        )
        more["versions"] = rows
    config = _export(tmp_path, _spec(tmp_path, (8000, 8001), **more), versions)

    checked = subprocess.run(
        _envoy(tmp_path, "--mode", "validate", "-c", str(config)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


def test_envoy_refuses_what_is_too_large_or_too_much(
    tmp_path: Path, versions: tuple[Replica, Replica]
) -> None:
    ports = (free_port(), free_port())
    limits = {"requests_per_s": 1, "burst": 5, "max_body_bytes": 2048}
    config = _export(tmp_path, _spec(tmp_path, ports, limits=limits), versions)

    with _serving(tmp_path, config, ports[0]), httpx.Client() as client:
        url = f"http://127.0.0.1:{ports[0]}/v2/models/digits"
        large = client.post(f"{url}/infer", content=b"x" * 5000)
        statuses = Counter(client.get(url).status_code for _ in range(20))

    assert large.status_code == 413
    assert statuses[429] >= 10


def test_envoy_speaks_tls_with_the_specs_own_files(
    tmp_path: Path, versions: tuple[Replica, Replica]
) -> None:
    authority = Authority(tmp_path / "ca")
    mine, bank = authority.server("gateway"), authority.client("bank.test")
    ports = (free_port(), free_port())
    tls = {
        "tls": {
            "certificate_file": str(mine.certificate),
            "key_file": str(mine.key),
            "client_ca_file": str(authority.ca),
        }
    }
    rules = {"certificates": [{"name": "bank", "dns": "bank.test"}]}
    spec = _spec(tmp_path, ports, gateway=tls, auth=rules, access=["certificate"])
    config = _export(tmp_path, spec, versions)
    url = f"https://127.0.0.1:{ports[0]}/v2/models/digits/ready"
    context = ssl.create_default_context(cafile=authority.ca)
    known = ssl.create_default_context(cafile=authority.ca)
    known.load_cert_chain(*bank.both)

    with _serving(tmp_path, config, ports[0], "https"):
        stranger = httpx.get(url, verify=context)
        caller = httpx.get(url, verify=known)
        with pytest.raises(httpx.TransportError):
            httpx.get(url.replace("https", "http"))

    assert stranger.status_code == 401
    assert caller.status_code == 200
