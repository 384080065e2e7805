import json
import re
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from headrace.cli import main
from headrace.cli.app import app
from headrace.cli.base.spec_file import read_spec
from headrace.cli.export.facts import observed_of, pinned_endpoints
from headrace.cli.export.options import PlaceOptions, addresses_for, check_host_port
from headrace.control.kubernetes import name_of
from headrace.registry import Registry
from tests.unit.control.conftest import inspect

_SPEC = """
version: 1
endpoints:
  - name: fraud
    access: public
    versions:
      - {model: "fraud:1", weight: 90}
      - {model: "fraud:2", weight: 10}
"""

_KONG = ("kong", "--replica", "fraud:1=a:1", "--replica", "fraud:2=b:1")


def _run(folder: Path, *arguments: str, spec: str = _SPEC) -> Result:
    file = folder / "headrace.yaml"
    file.write_text(spec)
    home = ("--home", str(folder / "home"))
    return CliRunner().invoke(app, ["export", *arguments, "-f", str(file), *home])


def test_routes_go_to_standard_output_and_notes_beside_it(tmp_path: Path) -> None:
    done = _run(tmp_path, "gateway-api", "--gateway", "infra/public")

    assert done.exit_code == 0, done.output
    assert "kind: HTTPRoute" in done.stdout
    assert "note: gRPC" in done.stderr


def test_a_folder_gets_a_file_for_each_document(tmp_path: Path) -> None:
    out = tmp_path / "routes"

    done = _run(tmp_path, "gateway-api", "--no-grpc", "-o", f"{out}/", "--format", "json")

    assert done.exit_code == 0, done.output
    assert sorted(path.name for path in out.iterdir()) == [
        "httproute-headrace-fraud.json",
        "httproute-headrace-server.json",
    ]
    assert json.loads((out / "httproute-headrace-fraud.json").read_text())["kind"] == "HTTPRoute"


def test_a_file_of_an_endpoint_that_is_gone_is_named_and_kept(tmp_path: Path) -> None:
    out = tmp_path / "routes"
    out.mkdir()
    (out / "mine.yaml").write_text("# mine\n")
    two = _SPEC + "  - {name: other, model: 'other:1', access: public}\n"
    assert _run(tmp_path, "gateway-api", "-o", f"{out}/", spec=two).exit_code == 0

    done = _run(tmp_path, "gateway-api", "-o", f"{out}/")

    told = [line for line in done.stderr.splitlines() if "delete it" in line]
    assert [Path(line.split()[1]).name for line in told] == [
        "grpcroute-headrace-other.yaml",
        "httproute-headrace-other.yaml",
    ]
    assert (out / "httproute-headrace-other.yaml").exists()


def test_an_output_that_is_empty_does_not_mean_the_folder_one_is_in(tmp_path: Path) -> None:
    done = _run(tmp_path, "gateway-api", "-o", "")

    assert done.exit_code == 2
    assert "it is empty" in done.stderr


def test_the_endings_says_the_format(tmp_path: Path) -> None:
    out = tmp_path / "kong.json"
    replicas = ("--replica", "fraud:1=a:1", "--replica", "fraud:2=b:1")

    done = _run(tmp_path, "kong", *replicas, "-o", str(out))

    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["_format_version"] == "3.0"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("kong",), "version 1 of 'fraud' has no address"),
        (("kong", "--replica", "fraud=a:1"), "is not ENDPOINT:VERSION=ADDRESS"),
        (("gateway-api", "--format", "xml"), "neither yaml nor json"),
        (("gateway-api", "--endpoint", "nobody"), "no endpoint of that name"),
        (("gateway-api", "--service", "fraud:1=a:b"), "takes one NAME[:PORT]"),
        (("gateway-api", "--service", "fraud:1=A_b"), "'A_b' of fraud:1 is not a Service name"),
        (("gateway-api", "--service", "fraud:3=a"), "available: fraud:1, fraud:2"),
        (("gateway-api", "--gateway", "a/b/c"), "--gateway: 'a/b/c' is not [NAMESPACE/]NAME"),
        (("gateway-api", "--gateway", "a/"), "is not [NAMESPACE/]NAME"),
        (("gateway-api", "--section", "Https"), "is not a listener name"),
        (("gateway-api", "--hostname", "http://x"), "--hostname: 'http://x' is not a hostname"),
        (("gateway-api", "--instance", "UP per"), "--instance: instance 'UP per': 1 to 40"),
        (("gateway-api", "--namespace", "a.b"), "--namespace: namespace 'a.b': 1 to 63"),
        (("kong", "--replica", "fraud:1=a"), "--replica: 'a' is not HOST:PORT"),
        (("kong", "--replica", "fraud:1=a:65536"), "'a:65536' is not HOST:PORT"),
        (
            (*_KONG, "--grpc-replica", "fraud:3=a:1"),
            "--grpc-replica: fraud:3 is not an exported version",
        ),
        (("envoy", "--replica", "fraud:1=a.lan:80"), "--replica: host 'a.lan' is not an IP"),
        (("gateway-api", "--allow-loss", "endpoints[].stikcy"), "that is not lost here"),
        (("argo-rollouts",), "moves all requests to the newest version"),
        (("kserve", "--storage", "s3://x"), "not in the registry"),
        (("kserve", "--storage", "s3://x/{name}"), "--storage: {name} is not known; one is s3://"),
        (("kserve", "--storage", "models/{file}"), "--storage: 'models/{file}' is no URI"),
        (("argo-rollouts", "--artifacts", "models"), "--artifacts: the artifact store URL has"),
        (("helm", "-o", "x", "--artifacts", "s3://k:s@m"), "holds credentials or options"),
        (("aws-apigateway", "--backend", "ftp://x"), "must be http://"),
        (("gateway-api", "--from-system"), "either --file FILE or --from-system"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, arguments: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(_SPEC)

    status = main(["export", *arguments, "-f", str(file), "--home", str(tmp_path / "home")])

    assert status != 0
    assert told in capsys.readouterr().err


def test_a_wrong_command_line_is_not_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "gateway-api"]) == 2

    assert "--file: pass either --file FILE or --from-system" in capsys.readouterr().err


@pytest.mark.parametrize("host", ["a:1", "10.0.0.7:8000", "[::1]:65535", "a-b.c_d.lan:80"])
def test_an_address_has_a_host_and_a_port(host: str) -> None:
    found = addresses_for("--replica", [f"a:1={host}"], check_host_port)

    assert found == {("a", "1"): [host]}


def test_a_service_is_named_with_or_without_its_port() -> None:
    place = PlaceOptions(instance="one", namespace="two").place(["fraud:1=a", "fraud:2=b:90"])

    assert place.services == {("fraud", "1"): ("a", None), ("fraud", "2"): ("b", 90)}


@pytest.mark.parametrize("text", ["", "=", "a:1", "a=b:1", ":1=b", "a:=b", "a:1="])
def test_an_address_is_for_a_version(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="ENDPOINT:VERSION=ADDRESS"):
        addresses_for("--replica", [text])


def _pushed(folder: Path, count: int = 2) -> Path:
    """A home whose registry has versions of `fraud`."""
    home = folder / "home"
    for number in range(count):
        file = folder / f"m{number}.onnx"
        file.write_bytes(b"model %d" % number)
        Registry(home, inspect).push("fraud", file)
    return home


def test_services_of_pushed_models_are_called_as_the_static_chart_and_the_driver_call_them(
    tmp_path: Path,
) -> None:
    home = _pushed(tmp_path)

    done = _run(tmp_path, "gateway-api", "--format", "json", "--instance", "prod")

    assert done.exit_code == 0, done.output
    (endpoint,) = pinned_endpoints(read_spec(tmp_path / "headrace.yaml"), home)
    for arm in endpoint.arms:
        assert f'"{name_of(arm.revision, instance="prod")}"' in done.stdout
    assert "Services are assumed to be named" not in done.stderr


def test_services_are_called_the_same_wherever_the_home_is(tmp_path: Path) -> None:
    found = []
    for name in ("laptop", "another"):
        folder = tmp_path / name
        folder.mkdir()
        _pushed(folder)
        found.append(_run(folder, "gateway-api", "--format", "json"))

    assert [done.exit_code for done in found] == [0, 0], found
    assert found[0].stdout == found[1].stdout
    assert re.search(r'"headrace-fraud-2-[0-9a-f]{8}"', found[0].stdout)


def test_a_model_that_is_not_pushed_leaves_the_plain_name_and_says_so(tmp_path: Path) -> None:
    _pushed(tmp_path, 1)

    done = _run(tmp_path, "gateway-api", "--format", "json")

    assert done.exit_code == 0, done.output
    assert '"headrace-fraud-2"' in done.stdout
    assert "headrace-fraud-2 (endpoints[0].versions[1])" in done.stderr


def test_an_endpoint_that_serves_a_file_pushes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(b"model")
    spec = f"version: 1\nendpoints: [{{name: fraud, access: public, model: {file}}}]"
    before = sorted(tmp_path.rglob("*"))

    done = _run(tmp_path, "gateway-api", spec=spec)

    assert "Services are assumed to be named headrace-fraud-1" in done.stderr, done.output
    assert {path.name for path in set(tmp_path.rglob("*")) - {*before}} <= {"headrace.yaml"}


def _revision(version: str, weight: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # as the API has it
    usual = {"model": f"fraud:{version}", "desired_weight": weight, "desired_replicas": 1}
    return {"version": version, "weight": weight, "role": "", **usual, **more}


def test_fresh_copies_count_as_their_version_and_leaving_ones_not_at_all() -> None:
    gone = _revision("0", 0, desired_replicas=0)
    revisions = [gone, _revision("1", 80), _revision("1", 10, role="baseline"), _revision("2", 10)]

    seen = observed_of({"status": {"revisions": revisions}, "rollout": None})

    assert [(share.version, share.weight) for share in seen.shares] == [("1", 90), ("2", 10)]


_ID = "a1b2c3d4e5f60718"


@pytest.mark.parametrize(
    ("replicas", "known"),
    [
        (["headrace-fraud-1-a1b2c3d4-6f7c9d8b5-x2x4z"], _ID),
        (["fraud-1-7"], ""),  # a process of the driver `local`
        ([], ""),
    ],
)
def test_a_revision_that_runs_in_pods_is_known_by_their_names(
    replicas: list[str], known: str
) -> None:
    told = _revision("1", 100, id=_ID, replicas=[{"name": name} for name in replicas])

    seen = observed_of({"status": {"revisions": [told]}, "rollout": None})

    assert [share.revision for share in seen.shares] == [known]


@pytest.mark.parametrize(("over", "mirror"), [(False, "2"), (True, "")])
def test_a_shadow_is_seen_while_it_lasts(over: bool, mirror: str) -> None:  # noqa: FBT001  # a case
    rollout = {"over": over, "mirror_percent": 30, "to_version": "2"}
    revisions = [_revision("1", 100), _revision("2", 0)]

    seen = observed_of({"status": {"revisions": revisions}, "rollout": rollout})

    assert seen.mirror == mirror
    assert seen.mirror_percent == (30 if mirror else 0)
