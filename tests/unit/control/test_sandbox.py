"""What a process may read that loads a model: as little as it needs."""

from pathlib import Path

from headrace.control.local.sandbox import files_of


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
