"""Which versions are old, and which are vulnerable."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headrace.advise import AuditFacts, FindingSeverity, run_checks
from headrace.advise.audit.checks import CHECKS
from headrace.advise.audit.facts import Affected
from headrace.advise.audit.software import (
    MINIMUMS,
    is_affected,
    read_advisories,
    version_key,
)
from headrace.core import InvalidArgumentError
from tests.unit.advise.conftest import NOW


def osv(**more: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    affected = {
        "package": {"ecosystem": "PyPI", "name": "httptools"},
        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "0.7.0"}]}],
    }
    return {"id": "GHSA-1", "summary": "smuggling", "affected": [affected]} | more


def found(facts: AuditFacts) -> list[tuple[str, str, FindingSeverity]]:
    checks = [check for check in CHECKS if check.id.startswith("HR6")]
    return [(one.where, one.fix, one.severity) for one in run_checks(checks, facts).findings]


@pytest.mark.parametrize("text", ["", "weird", "1." + "1" * 5000])
def test_a_text_that_is_no_version_is_not_affected(text: str) -> None:
    assert not is_affected(Affected(package="x", ranges=(("0", "", ""),)), text)


@pytest.mark.parametrize(
    ("have", "expected"),
    [("1.0", True), ("1.4.9", True), ("1.5", False), ("0.9", False), ("2.1", True), ("2.2", False)],
)
def test_a_version_is_affected_inside_of_a_range(have: str, expected: bool) -> None:  # noqa: FBT001  # of a table
    affected = Affected(package="x", ranges=(("1.0", "1.5", ""), ("2.0", "", "2.1")))

    assert is_affected(affected, have) is expected


def test_a_version_that_is_listed_is_affected_however_it_is_written() -> None:
    affected = Affected(package="x", versions=("1.0.0", "weird"))

    assert is_affected(affected, "1.0")
    assert is_affected(affected, "weird")
    assert not is_affected(affected, "1.1")
    assert not is_affected(affected, "odd")


def test_an_advisory_on_what_is_installed_is_a_finding_with_the_version_that_mends_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "osv.json"
    file.write_text(json.dumps(osv(database_specific={"severity": "MODERATE"})))
    facts = AuditFacts(now=NOW, advisories=read_advisories(file), packages={"HttpTools": "0.6.4"})

    assert found(facts) == [
        ("HttpTools", "pip install 'HttpTools>=0.7.0'", FindingSeverity.MEDIUM),
    ]
    assert found(replace(facts, packages={"httptools": "0.7.0"})) == []
    assert found(replace(facts, packages={"other": "0.1"})) == []


def test_an_advisory_without_a_fix_says_so(tmp_path: Path) -> None:
    events = [{"introduced": "0.1"}]
    affected = osv()["affected"][0] | {"ranges": [{"type": "ECOSYSTEM", "events": events}]}
    (tmp_path / "a.json").write_text(json.dumps(osv(affected=[affected])))
    facts = AuditFacts(
        now=NOW, advisories=read_advisories(tmp_path), packages={"httptools": "0.6.4"}
    )

    assert found(facts) == [
        ("httptools", "No fix is known; replace httptools.", FindingSeverity.HIGH),
    ]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(osv()),
        json.dumps([osv(), osv(id="GHSA-2")]),
        json.dumps({"vulns": [osv()]}),
        json.dumps(osv()) + "\n" + json.dumps(osv(id="GHSA-2")) + "\n",
    ],
    ids=["one", "a list", "an answer", "lines"],
)
def test_advisories_are_read_in_every_form_they_come_in(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)

    advisories = read_advisories(tmp_path / "a.json")

    assert advisories[0].id == "GHSA-1"
    assert advisories[0].affected[0].ranges == (("0", "0.7.0", ""),)


def test_advisories_that_were_withdrawn_or_are_about_others_are_left_out(tmp_path: Path) -> None:
    other = {"package": {"ecosystem": "npm", "name": "httptools"}}
    documents = [
        osv(withdrawn="2026-01-01T00:00:00Z"),
        osv(affected=[other]),
        osv(affected=[]),
    ]
    (tmp_path / "a.json").write_text(json.dumps(documents))

    assert read_advisories(tmp_path) == ()


def test_ranges_of_commits_say_nothing_and_open_ends_are_kept(tmp_path: Path) -> None:
    ranges = [
        {"type": "GIT", "events": [{"introduced": "0"}]},
        {
            "type": "ECOSYSTEM",
            "events": [{"introduced": "0"}, {"introduced": "1"}, {"last_affected": "2"}],
        },
    ]
    affected = osv()["affected"][0] | {"ranges": ranges}
    (tmp_path / "a.json").write_text(json.dumps(osv(summary="", affected=[affected])))

    (advisory,) = read_advisories(tmp_path)

    assert advisory.affected[0].ranges == (("0", "", ""), ("1", "", "2"))
    assert advisory.summary == "no summary"


@pytest.mark.parametrize("text", ["{", '{"summary": "no id"}', "\x80", "[1]"])
def test_what_is_no_advisory_is_an_error_that_names_the_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(InvalidArgumentError, match=r"a\.json"):
        read_advisories(tmp_path / "a.json")
    with pytest.raises(InvalidArgumentError, match="cannot read"):
        read_advisories(tmp_path / "gone.json")


@pytest.mark.parametrize("minimum", MINIMUMS, ids=lambda one: f"{one.name}-{one.line}")
def test_the_oldest_version_that_is_still_good_is_no_finding(minimum: Any) -> None:  # noqa: ANN401  # of a table
    facts = AuditFacts(now=NOW, software={minimum.name: minimum.version})

    assert found(facts) == []
    assert minimum.reason
    assert version_key(minimum.version) is not None
