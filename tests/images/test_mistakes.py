"""What people get wrong with the replica's image is told, with the way out."""

from collections.abc import Mapping

import httpx
import pytest

from tests.images.containers import STRICT, Docker, running
from tests.images.test_replica import ports


@pytest.mark.parametrize(
    ("command", "status", "told"),
    [
        (("serve",), 2, "Missing argument 'model'"),
        (("serve", "/models/mlp.onnx", "--prot", "8"), 2, "No such option: --prot"),
        (("serve", "/models/mlp.onnx", "--device", "tpu"), 2, "'tpu' is not one of 'auto', 'cpu'"),
        (("serv", "/models/mlp.onnx"), 2, "Did you mean 'serve'"),
        (("serve", "/models/none.onnx"), 1, "'/models' has broken.onnx, "),
        (("serve", "/model/mlp.onnx"), 1, "there is no directory '/model' either"),
        (("serve", "/models/empty.onnx"), 3, "/models/empty.onnx: is empty (0 bytes)"),
        (("serve", "/models/half.onnx"), 3, "is truncated or corrupt"),
        (
            ("serve", "/models/private.onnx"),
            3,
            "user 65532, which runs this process, may not read it",
        ),
        (("serve", "/models/slow"), 1, "`--allow-code` on the command line"),
        (
            ("serve", "/models/mlp.onnx", "--device", "cuda"),
            3,
            "device 'cuda' was requested but is not available",
        ),
    ],
)
def test_a_wrong_command_ends_with_a_reason(
    docker: Docker,
    images: Mapping[str, str],
    mount: str,
    *,
    command: tuple[str, ...],
    status: int,
    told: str,
) -> None:
    done = docker.run(
        *("run", "--rm", "--network", "none", "--volume", mount, images["replica"], *command)
    )

    assert done.returncode == status, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_nobody_mounted_is_missed_with_what_to_do(
    docker: Docker, images: Mapping[str, str]
) -> None:
    done = docker.run(
        *("run", "--rm", "--network", "none", images["replica"], "serve", "/models/mlp.onnx")
    )

    assert done.returncode == 1
    assert "'/models' is empty: a container sees what is mounted" in done.stderr
    assert '-v "$PWD:/models:ro"' in done.stderr


def test_a_port_that_is_taken_or_not_allowed_is_named(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    told = ports() | {"HEADRACE_METRICS_PORT": "1"}
    privileged = ("--sysctl", "net.ipv4.ip_unprivileged_port_start=1024", "--network", "none")
    named = [option for key, value in told.items() for option in ("--env", f"{key}={value}")]

    done = docker.run(
        *("run", "--rm", *privileged, *named, "--volume", mount, images["replica"]),
        *("serve", "/models/mlp.onnx"),
    )

    assert done.returncode == 4
    assert "port 1: Permission denied; choose another port" in done.stderr


@pytest.mark.parametrize("user", ["1000:1000", "1000770000:0", "0:0"])
@pytest.mark.parametrize("options", [STRICT, ("--read-only", "--cap-drop", "ALL")])
def test_any_user_may_run_it_with_nothing_to_write_to(
    docker: Docker, images: Mapping[str, str], mount: str, user: str, options: tuple[str, ...]
) -> None:
    told = ports()
    with running(
        docker,
        images["replica"],
        *("serve", "/models/mlp.onnx"),
        environ=told,
        mounts=[mount],
        options=("--user", user, *options),
    ) as container:
        container.wait_for_health("healthy")

        answer = httpx.get(f"http://127.0.0.1:{told['HEADRACE_HTTP_PORT']}/v2/models/mlp")

        assert answer.status_code == 200
        assert container.stop() < 10
        assert container.state["ExitCode"] == 0, container.logs()


def test_a_whole_system_runs_as_a_user_of_the_clusters_choice(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    """OpenShift gives a container some user, with root's group and no right of root's."""
    told = ports() | {"HEADRACE_ADMIN_PORT": "0", "HEADRACE_HOST": "127.0.0.1"}
    with running(
        docker,
        images["standalone"],
        *("up", "/models/mlp.onnx"),
        environ=told,
        mounts=[mount],
        options=("--user", "1000770000:0", *STRICT),
    ) as container:
        container.wait_for_health("healthy")
        container.stop()

        assert container.state["ExitCode"] == 0, container.logs()


def test_a_system_whose_state_belongs_to_others_says_so(
    docker: Docker, images: Mapping[str, str], mount: str
) -> None:
    done = docker.run(
        *("run", "--rm", "--network", "none", "--user", "1000:1000", "--volume", mount),
        *(images["standalone"], "up", "/models/mlp.onnx"),
    )

    assert done.returncode == 2
    assert "Directory '/var/lib/headrace' is not readable" in done.stderr
