"""An audit in each of its forms: whole, valid, and safe whatever stands in names."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import jsonschema_rs
import pytest

from headrace.advise import Audit, AuditFinding, FindingSeverity, NotChecked
from headrace.advise.audit.checks import CHECKS
from headrace.advise.audit.reports import (
    AuditReport,
    file_uri,
    html_report,
    json_report,
    sarif_report,
    summary_line,
    text_report,
)
from headrace.core.text import printable
from tests.unit.advise.conftest import NOW
from tests.unit.advise.sarif import SCHEMA

HOSTILE = "<script>alert(1)</script>\"'&\x1b[2J\r\n\u202e</pre>\ud800"
FINDING = AuditFinding(
    id="HR001",
    title="An endpoint is open to everybody on the network",
    severity=FindingSeverity.CRITICAL,
    where="endpoints[0].access",
    evidence="endpoint 'a' has `access: public`",
    why="Whoever reaches it may call it.",
    fix="access: [key]",
    file="headrace.yaml",
    line=7,
)
LOW = replace(
    FINDING, id="HR301", severity=FindingSeverity.LOW, title="Nothing", where="endpoints[1].slo"
)
AUDIT = Audit(
    findings=(FINDING, replace(FINDING, where="endpoints[1].access", line=9), LOW),
    not_checked=(NotChecked(id="HR021", title="An API key never expires", reason="nobody knows"),),
    passed=("HR002", "HR003"),
)
EMPTY = Audit(findings=(), not_checked=(), passed=("HR001",))


def report(audit: Audit = AUDIT, target: str = "headrace.yaml") -> AuditReport:
    return AuditReport(audit=audit, target=target, created_at=NOW, version="0.1.0")


def hostile() -> AuditReport:
    finding = replace(
        FINDING, where=HOSTILE, evidence=HOSTILE, fix=HOSTILE, file=f"{HOSTILE}.yaml", why=HOSTILE
    )
    missing = NotChecked(id="HR021", title="x", reason=HOSTILE)
    audit = Audit(findings=(finding,), not_checked=(missing,), passed=())
    return report(audit, target=HOSTILE)


class Page(HTMLParser):
    """Which tags a page has, with their attributes, and its text."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_text_says_what_where_why_and_how_to_mend_it() -> None:
    lines = text_report(report()).splitlines()

    assert lines[2:8] == [
        "CRITICAL HR001  An endpoint is open to everybody on the network",
        "    at   headrace.yaml:7 endpoints[0].access",
        "    seen endpoint 'a' has `access: public`",
        "    at   headrace.yaml:9 endpoints[1].access",
        "    seen endpoint 'a' has `access: public`",
        "    why  Whoever reaches it may call it.",
    ]
    assert lines[8] == "    fix  access: [key]"
    assert "    HR021: nobody knows" in lines
    assert lines[-1] == ("2 critical, 1 low findings; 2 checks passed, 1 could not run")


def test_no_findings_are_told_in_every_form() -> None:
    assert summary_line(EMPTY) == "no findings; 1 checks passed, 0 could not run"
    assert "No findings." in html_report(report(EMPTY))
    assert sarif_report(report(EMPTY), CHECKS)["version"] == "2.1.0"
    assert json_report(report(EMPTY))["findings"] == []


def test_text_never_sends_a_terminal_what_stands_in_names() -> None:
    text = text_report(hostile())

    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\x1b[2J" in text
    assert printable("a\tb é") == "a b é"
    text.encode()


def test_json_holds_everything_under_stable_names() -> None:
    document = json.loads(json.dumps(json_report(replace(report(), fail_on=FindingSeverity.HIGH))))

    assert document["schema"] == 1
    assert document["summary"] == {"critical": 2, "high": 0, "medium": 0, "low": 1}
    assert (document["fail_on"], document["fails"]) == ("high", True)
    assert document["findings"][0] == {
        "id": "HR001",
        "title": "An endpoint is open to everybody on the network",
        "severity": "critical",
        "where": "endpoints[0].access",
        "evidence": "endpoint 'a' has `access: public`",
        "why": "Whoever reaches it may call it.",
        "fix": "access: [key]",
        "file": "headrace.yaml",
        "line": 7,
    }
    assert document["not_checked"] == [
        {"id": "HR021", "title": "An API key never expires", "reason": "nobody knows"}
    ]
    assert document["passed"] == ["HR002", "HR003"]


@pytest.mark.parametrize("made", [report(), report(EMPTY), hostile()], ids=["some", "none", "odd"])
def test_sarif_is_valid_by_the_schema_of_its_version(made: AuditReport) -> None:
    document = json.loads(json.dumps(sarif_report(made, CHECKS)))

    validator = jsonschema_rs.validator_for(SCHEMA, validate_formats=True)
    assert [error.message for error in validator.iter_errors(document)] == []


def test_sarif_names_rule_place_and_line() -> None:
    document = json.loads(json.dumps(sarif_report(report(), CHECKS)))
    (run,) = document["runs"]
    first, second, low = run["results"]

    assert run["tool"]["driver"]["rules"][first["ruleIndex"]]["id"] == first["ruleId"] == "HR001"
    assert (first["level"], low["level"]) == ("error", "note")
    assert first["locations"][0]["physicalLocation"] == {
        "artifactLocation": {"uri": "headrace.yaml"},
        "region": {"startLine": 7},
    }
    assert first["partialFingerprints"] != second["partialFingerprints"]
    (note,) = run["invocations"][0]["toolExecutionNotifications"]
    assert note["associatedRule"]["id"] == "HR021"


def test_a_finding_keeps_its_fingerprint_when_only_the_value_changes() -> None:
    later = replace(AUDIT, findings=(replace(FINDING, evidence="another", line=70),))

    def prints(audit: Audit) -> object:
        document = json.loads(json.dumps(sarif_report(report(audit), CHECKS)))
        return document["runs"][0]["results"][0]["partialFingerprints"]

    assert prints(AUDIT) == prints(later)


def test_a_finding_outside_of_a_file_has_no_physical_place() -> None:
    audit = replace(AUDIT, findings=(replace(FINDING, file="", line=None),))
    document = json.loads(json.dumps(sarif_report(report(audit), CHECKS)))

    (location,) = document["runs"][0]["results"][0]["locations"]
    assert location == {"logicalLocations": [{"fullyQualifiedName": "endpoints[0].access"}]}


@pytest.mark.parametrize(
    ("path", "uri"),
    [
        ("headrace.yaml", "headrace.yaml"),
        ("a b/ü.yaml", "a%20b/%C3%BC.yaml"),
        ("/srv/a#b.yaml", "file:///srv/a%23b.yaml"),
        ("a:b.yaml", "a%3Ab.yaml"),
    ],
)
def test_paths_are_written_as_uris(path: str, uri: str) -> None:
    assert file_uri(path) == uri


def test_the_page_is_one_file_that_loads_and_runs_nothing() -> None:
    page = Page(html_report(report()))

    tags = [tag for tag, _ in page.tags]
    assert {"script", "link", "img", "iframe", "a"} & set(tags) == set()
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)
    metas = [attributes for tag, attributes in page.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in metas
    assert any("default-src 'none'" in str(meta.get("content")) for meta in metas)
    assert "prefers-color-scheme: dark" in html_report(report())
    assert "An API key never expires" in page.text


def test_the_page_shows_hostile_names_as_text() -> None:
    text = html_report(hostile())

    page = Page(text)
    assert "script" not in [tag for tag, _ in page.tags]
    assert "<script>alert(1)</script>" in page.text
    text.encode("utf-8", "replace")
