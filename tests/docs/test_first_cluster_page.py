"""The commands of the page "From an empty cluster to a canary", on a real API server.

Pods are processes. Not run: `make push`, whose file with values the test writes, as pods have the
programs of this environment whatever their image. `kubectl port-forward` and `--watch` are ours.
"""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.postgres import PASSWORD, NoPostgresError, running_postgres
from tests.contract.s3_servers import NoServerError, make_bucket, running_moto
from tests.docs.test_pages import BIN, ROOT, SEPARATOR, Block, assert_prints, blocks, compose
from tests.kube import REGISTRY, needs, program
from tests.kube_server.fixtures import kube_lab_of_processes  # noqa: F401
from tests.kube_server.lab import Lab
from tests.kube_server.pods import ProcessPod
from tests.ports import free_port

pytestmark = [
    pytest.mark.e2e, pytest.mark.kube, pytest.mark.kube_server, pytest.mark.long,
    needs("helm", "kubectl"),
    # A probe whose handshake takes too long is cancelled, which leaves its socket open.
    pytest.mark.filterwarnings("ignore:.*_SelectorTransport:pytest.PytestUnraisableExceptionWarning"),
]  # fmt: skip

PAGE = ROOT / "docs" / "how-to" / "first-cluster.md"
WITHIN_S = 1500.0
DATABASE = "postgresql://headrace:PASSWORD@db.example.com:5432/headrace"
KUBECTL = """#!/bin/sh
if [ "$1" = port-forward ]; then shift; exec {python} {forward} "$@"; fi
case " $* " in *" --watch "*) timeout 8 "$KUBECTL" "$@" || [ $? = 124 ]; exit;; esac
exec "$KUBECTL" "$@"
"""
PUSHED = """image: {{registry: {registry}}}
control: {{image: {{digest: "sha256:{digest}"}}}}
gateway: {{image: {{digest: "sha256:{digest}"}}}}
"""


@contextmanager
def backends(host: str) -> Iterator[tuple[str, dict[str, str]]]:
    """The URL of a database, and variables of an S3 server with the bucket, for pods."""
    try:
        with running_postgres(host) as postgres, running_moto(host) as moto:
            with postgres.connect() as connection:
                connection.execute(b"CREATE DATABASE headrace")
            make_bucket(moto, "models")
            yield postgres.tcp_url(PASSWORD, "headrace"), moto.environment()
    except (NoPostgresError, NoServerError) as error:
        pytest.skip(str(error))


def steps(database: str, store: dict[str, str]) -> list[Block]:
    """The page's blocks with these backends, free ports, and files in place of pushed images."""
    ports = {port: str(free_port()) for port in ("8000", "8080")}
    pushes = iter("ab")
    result = []
    for block in blocks(PAGE):
        title, text = block.title, block.text.replace(DATABASE, database)
        for port, other in ports.items():
            text = text.replace(f"localhost:{port}", f"localhost:{other}")
            text = text.replace(f" {port}:{port}", f" {other}:{port}")
        if title == "store.env":
            text = "".join(f"{name}={value}\n" for name, value in store.items())
        elif block.language == "console":
            assert "make push" in text
            title = "dist/image-values.yaml"
            text = PUSHED.format(registry=REGISTRY, digest=next(pushes) * 64)
        result.append(Block(block.language, title, text))
    return result


def environment(lab: Lab, folder: Path) -> dict[str, str]:
    """The variables of a user whose kubectl forwards ports to pods."""
    user, tools = folder / "user", folder / "tools"
    for path in (user, tools):
        path.mkdir()
    config = user / "kubeconfig"
    config.write_text(lab.cluster.kubeconfig.read_text())
    forward = ROOT / "tests" / "kube_server" / "port_forward.py"
    wrapper = tools / "kubectl"
    wrapper.write_text(KUBECTL.format(python=BIN / "python", forward=forward))
    wrapper.chmod(0o755)
    (tools / "helm").symlink_to(program("helm"))
    for name in ("examples", "charts"):
        (folder / name).symlink_to(ROOT / name)
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("HEADRACE_", "XDG_"))
    }
    return {
        **inherited,
        "HOME": str(user),
        "PATH": f"{tools}:{BIN}:{os.environ['PATH']}",
        "KUBECONFIG": str(config),
        "KUBECTL": str(program("kubectl")),
        "COLUMNS": "120",
    }


def logs(lab: Lab) -> str:
    """The last lines of each pod."""
    return "\n".join(
        f"--- {pod.name} {container.spec['name']}\n{pod.log(container.spec['name'])[-1500:]}"
        for pod in list(lab.kubelet.pods.values())
        if isinstance(pod, ProcessPod)
        for container in (*pod.inits, *pod.containers)
    )


def test_every_command_of_the_page_does_what_it_shows(
    kube_lab_of_processes: Lab,  # noqa: F811
    tmp_path: Path,
) -> None:
    lab = kube_lab_of_processes
    with backends(lab.cluster.network.host) as (database, store):
        script, expected = compose(steps(database, store), {})
        variables = environment(lab, tmp_path)
        with (tmp_path / "stdout").open("w") as stdout, (tmp_path / "stderr").open("w") as stderr:
            shell = subprocess.Popen(  # noqa: S603  # the page's own commands
                ["/bin/bash", "-c", script],
                cwd=tmp_path, env=variables, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
                start_new_session=True,
            )  # fmt: skip
        status: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = shell.wait(WITHIN_S)
            output, errors = ((tmp_path / name).read_text() for name in ("stdout", "stderr"))
            assert status == 0, (status, output[-3000:] + errors[-4000:] + logs(lab))
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
        printed = output.split(SEPARATOR)
        for index, block in expected:
            assert_prints(block, printed[index])
