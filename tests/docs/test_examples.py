"""The examples' specs can be applied as they are, and say what their pages promise."""

import re
from pathlib import Path

import pytest

from headrace.core.spec.parse import parse_spec
from headrace.core.spec.rollout import CanarySpec

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FOLDERS = sorted(path.parent for path in EXAMPLES.glob("*/headrace.yaml"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_has_a_spec_without_mistakes(folder: Path) -> None:
    text = (folder / "headrace.yaml").read_text()

    spec = parse_spec(text, base_dir=folder, exists=lambda _: True)

    assert spec.endpoints


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_example_says_how_to_start_it(folder: Path) -> None:
    page = (folder / "README.md").read_text()

    assert "headrace up headrace.yaml" in page
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page)
    assert [link for link in links if not (folder / link).exists()] == []


def test_the_rollout_example_has_all_of_its_parts() -> None:
    folder = EXAMPLES / "rollouts"

    spec = parse_spec(
        (folder / "headrace.yaml").read_text(), base_dir=folder, exists=lambda _: True
    )

    (endpoint,) = spec.endpoints
    assert isinstance(endpoint.rollout, CanarySpec)
    assert endpoint.sticky is not None
    assert endpoint.sticky.header == "x-user-id"
    assert endpoint.slo is not None
    assert endpoint.autoscale is not None
