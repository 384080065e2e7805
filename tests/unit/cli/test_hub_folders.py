"""Of a Hugging Face folder only the needed files are stored, and none from elsewhere."""

import json
from pathlib import Path

import pytest

from headrace.cli.base.hub_folders import push_model
from headrace.cli.base.offline import HomeModels, Pushed
from headrace.cli.base.sources import with_pushed_models
from headrace.core import InvalidArgumentError
from tests import hub_folders

pytestmark = pytest.mark.slow


def stored_files(home: Path, folder: Path) -> list[str]:
    document = push_model(HomeModels(home), "mood", Pushed(path=folder), home)
    return [file["path"] for file in document["files"]]


def test_a_snapshot_in_the_cache_of_the_hub_is_stored_with_its_content(tmp_path: Path) -> None:
    real = hub_folders.write_text(tmp_path / "real")
    cache = tmp_path / "models--acme--mood"
    snapshot = cache / "snapshots" / "4f442bb"
    for folder in (cache / "blobs", snapshot):
        folder.mkdir(parents=True)
    for file in real.iterdir():
        blob = cache / "blobs" / f"blob-{file.name}"
        file.rename(blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)

    files = stored_files(tmp_path / "home", snapshot)

    assert files == ["config.json", "model.onnx", "tokenizer.json"]


def test_a_link_to_a_file_elsewhere_is_refused(tmp_path: Path) -> None:
    folder = hub_folders.write_text(tmp_path / "mood")
    (tmp_path / "secret").write_text("key")
    (folder / "README.md").symlink_to(tmp_path / "secret")

    with pytest.raises(InvalidArgumentError, match=r"README\.md: the link leaves the directory"):
        stored_files(tmp_path / "home", folder)


def test_a_spec_refers_to_stored_versions_of_its_folders(tmp_path: Path) -> None:
    folder = str(hub_folders.write_text(tmp_path / "mood"))
    document = {
        "version": 1,
        "endpoints": [
            {"name": "one", "model": folder},
            {"name": "two", "versions": [{"model": folder}, {"model": "fraud:3"}]},
            {"name": "raw", "model": folder, "runtime": "onnx"},
            {"name": "other", "upstream": {"url": "http://triton:8000"}},
        ],
    }

    home = tmp_path / "home"
    changed = with_pushed_models(document, lambda: HomeModels(home), home=home)

    assert changed["endpoints"] == [
        {"name": "one", "model": "one:1"},
        {"name": "two", "versions": [{"model": "two:1"}, {"model": "fraud:3"}]},
        document["endpoints"][2],  # type: ignore[index]  # a list of plain data
        document["endpoints"][3],  # type: ignore[index]
    ]
    assert json.dumps(document).count(folder) == 3
