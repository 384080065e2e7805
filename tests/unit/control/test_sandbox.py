"""What a process may read that loads a model: as little as it needs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.control.local import sandbox
from headrace.control.local.sandbox import KernelFeatures, Sandbox, files_of, without_root
from headrace.core import FailedPreconditionError
from headrace.gateway import EnvoySettings


def test_a_model_comes_with_its_directory(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.touch()

    assert files_of(file) == [tmp_path]
    assert files_of(tmp_path) == [tmp_path]


def test_a_numbered_directory_comes_with_the_configuration_above_it(tmp_path: Path) -> None:
    version = tmp_path / "net" / "3"
    version.mkdir(parents=True)
    file = version / "model.pt"
    file.touch()
    without = files_of(file)
    config = version.parent / "config.pbtxt"
    config.touch(mode=0o644)

    assert without == [version]
    assert files_of(file) == files_of(version) == [version, config]
    config.chmod(0o600)
    assert files_of(file) == [version], "it would keep the replica from being another user"
    config.chmod(0o644)
    version.rename(version.with_name("weights"))
    assert files_of(version.with_name("weights")) == [version.with_name("weights")]


@pytest.fixture
def roots_envoy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[EnvoySettings, Sandbox]:
    """Settings of Envoy, and the sandbox of a home beside them, as if this process were root."""
    monkeypatch.setattr(sandbox, "gateway_user", lambda: 61176)
    envoy = tmp_path / "envoy"
    envoy.touch(mode=0o755)
    home = tmp_path / "home"
    home.mkdir()
    able = KernelFeatures(namespaces="", user="")
    made = Sandbox(hide=(home,), reports=home, kernel_features=lambda: able)
    return EnvoySettings(run_dir=Path("/run/headrace/envoy"), envoy=envoy), made


def _shared(settings: EnvoySettings) -> list[str]:
    (spec,) = (json.loads(part) for part in settings.launcher if part.startswith("{"))
    return list(spec["shared"])


def test_roots_envoy_sees_the_directory_of_another_systems_limits(
    roots_envoy: tuple[EnvoySettings, Sandbox], tmp_path: Path
) -> None:
    settings, made = roots_envoy
    folder = tmp_path / "s"
    folder.mkdir()
    link = tmp_path / "l"
    link.symlink_to(folder)

    def shared(address: str | None) -> list[str]:
        return _shared(without_root(replace(settings, limits_address=address), made))

    own = str(settings.run_dir.parent)
    assert shared(None) == shared(f"unix:{own}/l.sock") == [own]
    assert shared("127.0.0.1:9090") == [own]
    assert shared(f"unix:{folder}/l.sock") == [own, str(folder)]
    assert shared(f"unix:{link}/l.sock") == [own, str(folder)]


@pytest.mark.parametrize(
    ("folder", "why"),
    [
        ("/tmp", "in /tmp, which the sandboxed Envoy of root cannot see"),  # noqa: S108  # not used
        ("{}/home", "cannot see"),
        ("{}/nowhere", "nowhere, which does not exist"),
    ],
)
def test_limits_that_roots_envoy_could_not_reach_are_refused(
    roots_envoy: tuple[EnvoySettings, Sandbox], tmp_path: Path, folder: str, why: str
) -> None:
    settings, made = roots_envoy
    address = f"unix:{folder.format(tmp_path)}/l.sock"

    with pytest.raises(FailedPreconditionError, match=why):
        without_root(replace(settings, limits_address=address), made)
