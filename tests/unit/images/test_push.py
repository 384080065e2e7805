"""`make push` builds for several platforms, and records the digests that Helm installs."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from scripts.images import pushed
from scripts.images.requirements import ROOT

pytestmark = pytest.mark.slow

DIGEST: Final = f"sha256:{'d' * 64}"
OTHER_DIGEST: Final = f"sha256:{'e' * 64}"
BOTH: Final = "linux/amd64*, linux/amd64/v2, linux/arm64"
DOCKER: Final = """#!/bin/sh
echo "$*" >>"$CALLS"
case "$1 $2" in
"buildx inspect") printf 'Name: b\\nDriver: %s\\nPlatforms: %s\\n' "$DRIVER" "$PLATFORMS_HERE" ;;
"info --format") echo "[[$STORE]]" ;;
esac
while [ $# -gt 0 ]; do
  case "$1" in
  --metadata-file) printf '{"containerimage.digest": "%s"}' "$DIGEST" >"$2" ;;
  type=local,dest=*) for part in $PARTS; do
    mkdir -p "${1#*dest=}/$part" && echo '{}' >"${1#*dest=}/$part/headrace.cdx.json"
  done ;;
  esac
  shift
done
"""
HELM: Final = """#!/bin/sh
echo "helm $*" >>"$CALLS"
[ "$1" != push ] || printf 'Pushed: x\\nDigest: %s\\n' "$DIGEST"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    """A run of `images.sh --push` with programs that record their arguments."""

    status: int
    output: str
    calls: list[str]
    dist: Path

    @property
    def builds(self) -> list[str]:
        """The builds that push."""
        return [call for call in self.calls if "--push" in call]

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.dist / "images.json").read_text())
        return record


def _push(
    folder: Path, *names: str, settings: Mapping[str, str] | None = None, driver: str = "remote"
) -> Push:
    for name, program in (("docker", DOCKER), ("helm", HELM)):
        (folder / name).write_text(program)
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    calls.write_text("")
    environ = {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "CALLS": str(calls),
        "DIGEST": DIGEST,
        "DRIVER": driver,
        "STORE": "overlay2",
        "PLATFORMS_HERE": BOTH,
        "PARTS": "linux_amd64 linux_arm64",
        "PREFIX": "registry.example/ml",
        "DIST": str(folder / "dist"),
        **(settings or {}),
    }
    command = [str(ROOT / "scripts" / "images.sh"), "--push", *names]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)  # noqa: S603  # ours
    return Push(
        status=done.returncode,
        output=done.stdout + done.stderr,
        calls=calls.read_text().splitlines(),
        dist=folder / "dist",
    )


def test_images_of_both_platforms_are_pushed_with_sbom_and_provenance(tmp_path: Path) -> None:
    push = _push(tmp_path, "control")

    assert push.status == 0, push.output
    (build,) = push.builds
    assert "--platform linux/amd64,linux/arm64" in build
    assert "--provenance=mode=max --attest type=sbom " in build
    assert "--tag registry.example/ml/control:" in build
    assert f"registry.example/ml/control@{DIGEST}" in push.output
    assert {path.name for path in (push.dist / "images").iterdir()} == {
        "control.linux_amd64.cdx.json",
        "control.linux_arm64.cdx.json",
    }


def test_images_and_chart_are_pushed_by_default(tmp_path: Path) -> None:
    push = _push(tmp_path, settings={"TAG": "9"})

    assert push.status == 0, push.output
    images = {"replica", "gateway", "control", "worker", "standalone"}
    assert set(push.record()["digests"]) == {*images, "charts/headrace"}
    package, upload = (call for call in push.calls if call.startswith("helm "))
    assert "--app-version 9 " in package
    assert upload.endswith("oci://registry.example/ml/charts")


def test_a_platform_that_the_builder_cannot_run_is_left_out(tmp_path: Path) -> None:
    settings = {"PLATFORMS_HERE": "linux/amd64, linux/386", "PARTS": "."}
    push = _push(tmp_path, "control", settings=settings)

    assert push.status == 0, push.output
    assert "without linux/arm64" in push.output
    assert "--platform linux/amd64 " in push.builds[0]
    assert (push.dist / "images" / "control.cdx.json").exists()


def test_tensorflow_is_built_for_x86_only(tmp_path: Path) -> None:
    push = _push(tmp_path, "replica-tensorflow", settings={"PARTS": "."})

    assert "--platform linux/amd64 " in push.builds[0]


@pytest.mark.parametrize(
    ("settings", "driver", "text"),
    [
        ({"PREFIX": ""}, "remote", "PREFIX names the registry"),
        ({"PREFIX": "somebody"}, "remote", "PREFIX names the registry"),
        ({"BASE": "debian"}, "remote", "a base image that the builder can pull"),
        ({"PLATFORMS": "linux/s390x"}, "remote", "the builder cannot run linux/s390x"),
        ({}, "docker", "holds neither attestations nor several platforms"),
        ({"DIGEST": "none"}, "remote", "'none' as the digest"),
    ],
)
def test_what_cannot_be_pushed_is_refused(
    tmp_path: Path, settings: dict[str, str], driver: str, text: str
) -> None:
    push = _push(tmp_path, "control", settings=settings, driver=driver)

    assert push.status != 0
    assert text in push.output
    assert not (push.dist / "images.json").exists()


def test_dockers_own_builder_pushes_from_the_image_store_of_containerd(tmp_path: Path) -> None:
    settings = {"STORE": "driver-type io.containerd.snapshotter.v1"}
    push = _push(tmp_path, "control", settings=settings, driver="docker")

    assert push.status == 0, push.output


def test_a_chart_is_pushed_without_docker(tmp_path: Path) -> None:
    push = _push(tmp_path, "chart", settings={"PREFIX": "127.0.0.1:5000/ml/"})

    assert push.status == 0, push.output
    assert all(call.startswith("helm ") for call in push.calls)
    assert push.calls[-1].endswith("oci://127.0.0.1:5000/ml/charts --plain-http")


def test_values_name_the_registry_and_digests(tmp_path: Path) -> None:
    push = _push(tmp_path, "control", "worker", settings={"TAG": "1.2"})

    values = YAML(typ="safe").load(push.dist / "image-values.yaml")
    assert values == {
        "image": {"registry": "registry.example/ml"},
        "control": {"image": {"repository": "control", "tag": "1.2", "digest": DIGEST}},
        "workers": {"image": {"repository": "worker", "tag": "1.2", "digest": DIGEST}},
    }


def test_a_later_push_of_the_same_version_keeps_the_other_images() -> None:
    first = pushed.merged({}, "r/ml", "1", {"control": DIGEST, "replica": DIGEST})
    second = pushed.merged(first, "r/ml", "1", {"replica": OTHER_DIGEST})
    third = pushed.merged(second, "r/ml", "2", {"gateway": DIGEST})

    assert second["digests"] == {"control": DIGEST, "replica": OTHER_DIGEST}
    assert third["digests"] == {"gateway": DIGEST}
