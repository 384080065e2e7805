"""An optimized model is one asset: its folder, with what lies in it."""

import pickle  # noqa: TID251  # what must not be there
from pathlib import Path

import pytest

from headrace.advise.inventory.asset import Asset, AssetFormat, AssetProblemKind
from headrace.advise.inventory.inventory import examine, recognise
from headrace.advise.inventory.walk import InventoryContext, take_inventory
from headrace.registry import read_content
from tests import optimized_models

KNOWN = InventoryContext(runtimes=("onnx", "optimized"), max_opset=20)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    (tmp_path / "only").mkdir()
    return optimized_models.write(tmp_path / "made").rename(tmp_path / "only" / "net")


def only(artifact: Path) -> Asset:
    (asset,) = take_inventory(artifact.parent, KNOWN).assets
    return asset


def troubles(asset: Asset) -> set[AssetProblemKind]:
    return {one.code for one in asset.problems} - {AssetProblemKind.UNSIGNED}


def test_it_is_its_folder_with_the_digest_that_the_registry_gives(artifact: Path) -> None:
    asset = only(artifact)

    assert (asset.path, asset.format, asset.runtime) == ("net", AssetFormat.OPTIMIZED, "optimized")
    assert asset.digest == str(read_content(artifact).digest)
    assert not troubles(asset)


def test_its_first_member_says_what_it_takes_and_the_manifest_how_it_runs(artifact: Path) -> None:
    details = only(artifact).details

    assert [one.name for one in details.inputs] == ["input"]
    assert details.precision == "FP32"
    assert details.notes["engines"] == "onnx"
    assert details.notes["on another processor"] == "verify"


def test_what_lies_unused_in_it_is_looked_at_too(artifact: Path) -> None:
    (artifact / "onnx-0" / "extra.pkl").write_bytes(pickle.dumps({"a": 1}))

    assert AssetProblemKind.RUNS_CODE in troubles(only(artifact))
    assert recognise(artifact)[1]
    assert any("'onnx-0/extra.pkl'" in one.message for one in only(artifact).problems)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b'{"schema": 9}', b'{"members": [], "processor": {"name": "", "features": []}}'],
)
def test_a_manifest_that_is_none_is_told(artifact: Path, text: bytes) -> None:
    (artifact / "optimized.json").write_bytes(text)
    kind, details = examine(artifact)

    assert kind is AssetFormat.OPTIMIZED
    assert [one.code for one in details.problems] == [AssetProblemKind.BROKEN]


def test_a_member_that_leaves_the_folder_is_told(artifact: Path) -> None:
    file = artifact / "optimized.json"
    file.write_text(file.read_text().replace("onnx-0/mlp.onnx", "../../other.onnx"))

    assert AssetProblemKind.BROKEN in troubles(only(artifact))
