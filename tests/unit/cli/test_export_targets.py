import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from headrace.cli.app import app
from headrace.cli.export_options import addresses_for, place_for
from headrace.cli.export_system import observed_of
from headrace.core import InvalidArgumentError

_SPEC = """
version: 1
endpoints:
  - name: fraud
    access: public
    versions:
      - {model: "fraud:1", weight: 90}
      - {model: "fraud:2", weight: 10}
"""


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


def test_the_endings_says_the_format(tmp_path: Path) -> None:
    out = tmp_path / "kong.json"
    replicas = ("--replica", "fraud:1=a:1", "--replica", "fraud:2=b:1")

    done = _run(tmp_path, "kong", *replicas, "-o", str(out))

    assert done.exit_code == 0, done.output
    assert json.loads(out.read_text())["_format_version"] == "3.0"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("kong",), "no address is known of version 1"),
        (("kong", "--replica", "fraud=a:1"), "is not ENDPOINT:VERSION=ADDRESS"),
        (("gateway-api", "--format", "xml"), "neither yaml nor json"),
        (("gateway-api", "--endpoint", "nobody"), "no endpoint of that name"),
        (("gateway-api", "--service", "fraud:1=a:b"), "takes one NAME[:PORT]"),
        (("gateway-api", "--allow-loss", "endpoints[].stikcy"), "that is not lost here"),
        (("argo-rollouts",), "moves all requests to the newest version"),
        (("kserve", "--storage", "s3://x"), "in no registry here"),
        (("aws-apigateway", "--backend", "ftp://x"), "neither http://"),
        (("gateway-api", "--from-system"), "either --file FILE or --from-system"),
    ],
)
def test_mistakes_are_told(tmp_path: Path, arguments: tuple[str, ...], told: str) -> None:
    done = _run(tmp_path, *arguments)

    assert done.exit_code != 0
    assert told in f"{done.output}{done.exception}"


def test_a_service_is_named_with_or_without_its_port() -> None:
    place = place_for("one", "two", ["fraud:1=a", "fraud:2=b:90"])

    assert place.services == {("fraud", "1"): ("a", None), ("fraud", "2"): ("b", 90)}


@pytest.mark.parametrize("text", ["", "=", "a:1", "a=b:1", ":1=b", "a:=b", "a:1="])
def test_an_address_is_for_a_version(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match="ENDPOINT:VERSION=ADDRESS"):
        addresses_for("--replica", [text])


def _revision(version: str, weight: int, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # as the API has it
    usual = {"model": f"fraud:{version}", "desired_weight": weight, "desired_replicas": 1}
    return {"version": version, "weight": weight, "role": "", **usual, **more}


def test_fresh_copies_count_as_their_version_and_leaving_ones_not_at_all() -> None:
    gone = _revision("0", 0, desired_replicas=0)
    revisions = [gone, _revision("1", 80), _revision("1", 10, role="baseline"), _revision("2", 10)]

    seen = observed_of({"status": {"revisions": revisions}, "rollout": None})

    assert [(share.version, share.weight) for share in seen.shares] == [("1", 90), ("2", 10)]


@pytest.mark.parametrize(("over", "mirror"), [(False, "2"), (True, "")])
def test_a_shadow_is_seen_while_it_lasts(over: bool, mirror: str) -> None:  # noqa: FBT001  # a case
    rollout = {"over": over, "mirror_percent": 30, "to_version": "2"}
    revisions = [_revision("1", 100), _revision("2", 0)]

    seen = observed_of({"status": {"revisions": revisions}, "rollout": rollout})

    assert seen.mirror == mirror
    assert seen.mirror_percent == (30 if mirror else 0)
