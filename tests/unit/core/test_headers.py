"""Headers between the gateway, the replicas and the control plane."""

import re
from pathlib import Path

from headrace import core
from headrace.core import headers
from headrace.core.headers import INTERNAL_HEADERS

SOURCE = Path(core.__file__).parent.parent
CHART = Path(__file__).parents[3] / "charts" / "headrace" / "templates" / "_helpers.tpl"


def test_no_other_module_spells_a_header() -> None:
    spelled = re.compile(r"x-headrace-(?!role\b)[a-z-]+")  # x-headrace-role: a field of OpenAPI
    modules = [path for path in SOURCE.rglob("*.py") if path != Path(headers.__file__)]

    assert [path for path in modules if spelled.search(path.read_text())] == []


def test_the_chart_removes_the_headers_that_no_caller_may_set() -> None:
    _, _, rest = CHART.read_text().partition('define "headrace.noHeadersOfOurs"')
    block, _, _ = rest.partition("{{- end }}")

    assert re.findall(r"- (x-[a-z-]+)", block) == list(INTERNAL_HEADERS)
