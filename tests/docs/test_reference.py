"""Generated parts of the reference pages."""

import json
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from headrace.autoscale.state import ScaleReason
from headrace.control.model.rollout_events import PHASE_REASONS
from headrace.core.spec.parse import json_schema
from scripts.reference import hook as hook_module
from scripts.reference.events import REASONS, event_table, written_events
from scripts.reference.hook import PART, PARTS, fill
from scripts.reference.management import management_sections, openapi
from scripts.reference.metrics import pool_metric_table
from scripts.reference.schema import default_of, spec_sections, type_of
from scripts.reference.tables import meanings

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ({"$ref": "#/$defs/SloSpec"}, "[SloSpec](#slospec)"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "string or null"),
        ({"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}, "[A](#a) or [B](#b)"),
        ({"const": "canary"}, "`canary`"),
        ({"enum": ["pause", "promote"], "type": "string"}, "`pause` or `promote`"),
        ({"type": "array", "items": {"type": "string"}}, "list of string"),
        ({"type": "array", "prefixItems": [{"type": "integer"}] * 2}, "list of integer, integer"),
        ({"type": "object", "additionalProperties": {"type": "number"}}, "mapping to number"),
        ({"type": "object", "additionalProperties": True}, "mapping"),
        ({"type": "integer", "minimum": 1, "maximum": 1024}, "integer, 1 to 1,024"),
        ({"type": "number", "exclusiveMinimum": 0.0, "maximum": 0.5}, "number, above 0 to 0.5"),
        (
            {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
            "number, above 0, below 1",
        ),
        ({"type": "integer", "minimum": 5}, "integer, from 5"),
        ({"type": "integer", "maximum": 5}, "integer, up to 5"),
        ({"type": "string", "pattern": "a|b"}, "string, `a\\|b`"),
        ({}, "any JSON"),
    ],
)
def test_a_type_is_told_with_its_bounds(field: dict[str, Any], text: str) -> None:
    assert type_of(field) == text


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ({"default": None}, "`null`"),
        ({"default": {"a": 1}}, "as below"),
        ({"default": "x"}, '`"x"`'),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "`null`"),
        ({"type": "array"}, "empty"),
    ],
)
def test_a_default_is_told_as_json(field: dict[str, Any], text: str) -> None:
    assert default_of(field) == text


def test_every_kind_of_object_in_the_spec_has_a_section_of_its_own() -> None:
    schema = json_schema()

    headings = [line for line in spec_sections(schema).splitlines() if line.startswith("## ")]

    assert sorted(headings) == sorted(["## The file", *(f"## {name}" for name in schema["$defs"])])


def test_every_route_of_the_management_api_is_told() -> None:
    text = management_sections()

    paths = openapi()["paths"]
    routes = [f"### `{m.upper()} {path}`" for path, methods in paths.items() for m in methods]
    assert len(routes) > 20
    assert [route for route in routes if route not in text.splitlines()] == []


def test_links_to_objects_of_the_management_api_lead_to_a_section() -> None:
    text = management_sections()

    sections = {line[4:].lower() for line in text.splitlines() if line.startswith("### ")}
    links = {part.partition(")")[0] for part in text.split("](#")[1:]}
    assert links
    assert links - sections == set()


def test_every_event_that_the_code_writes_is_told() -> None:
    written = written_events()

    told = event_table()
    assert ("spec", "Added") in written
    assert ("rollout", "Started") in written
    assert [pair for pair in written if "| `{}` | `{}` |".format(*pair) not in told] == []


def test_no_event_is_told_that_nothing_writes() -> None:
    written = {reason for _, reason in written_events()}

    known = {*written, "Weight", *PHASE_REASONS.values()}
    assert {*REASONS["spec"], *REASONS["rollout"]} - known == set()


def test_words_of_a_set_have_the_line_under_them_as_their_meaning() -> None:
    found = meanings(ScaleReason)

    assert list(found) == [reason.value for reason in ScaleReason]
    assert found["Idle"] == "No requests arrived for `idle_s`."
    assert found["Steady"] == ""


def test_metrics_of_a_pool_are_those_that_a_replica_has_not() -> None:
    lines = pool_metric_table().splitlines()[2:]

    assert lines
    assert all(line.startswith("| `headrace_pool_") for line in lines)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_becomes_markdown_on_a_page(name: str) -> None:
    comment = f"<!-- generated: {name} -->"
    pages = [page for page in DOCS.rglob("*.md") if comment in page.read_text().splitlines()]

    filled = fill(f"before\n\n{comment}\n\nafter\n")

    assert len(pages) == 1
    assert filled.startswith("before\n\n")
    assert filled.endswith("\n\nafter\n")
    assert "|---|" in filled or "```" in filled
    assert "generated:" not in filled


def test_no_page_names_an_unknown_part() -> None:
    named = {name for page in DOCS.rglob("*.md") for name in PART.findall(page.read_text())}

    assert named == set(PARTS)


def test_a_built_site_has_the_parts_and_the_schema(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# Codes\n\n<!-- generated: codes -->\n")
    hook = Path(hook_module.__file__)
    (tmp_path / "mkdocs.yml").write_text(f"site_name: test\nhooks: [{hook}]\n")
    config = load_config(str(tmp_path / "mkdocs.yml"))

    build(config)

    site = tmp_path / "site"
    assert "UNAVAILABLE" in (site / "index.html").read_text()
    schema = json.loads((site / "reference/headrace.schema.json").read_text())
    assert schema == json_schema()
