"""What the tests' own Prometheus can be relied on for."""

from pathlib import Path

import pytest

from tests.e2e.observe.prometheus import Tools

pytestmark = pytest.mark.e2e


def test_promtool_has_nothing_to_say_about_good_metrics(tools: Tools) -> None:
    good = "# HELP a_total Things.\n# TYPE a_total counter\na_total 1\n"

    assert tools.check_metrics(good) == ""


def test_promtool_says_what_is_wrong_with_metrics(tools: Tools) -> None:
    assert "a_total" in tools.check_metrics("# TYPE a_total gauge\na_total 1\n")


def test_promtool_says_what_is_wrong_with_rules(tools: Tools, tmp_path: Path) -> None:
    path = tmp_path / "rules.json"
    path.write_text('{"groups":[{"name":"g","rules":[{"alert":"A","expr":"up =="}]}]}')

    assert "parse error" in tools.check_rules(path)
