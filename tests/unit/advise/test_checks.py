"""Each planted fault is found by exactly its check; the hardened example has none."""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from ruamel.yaml import YAML

from headrace.advise import Audit, AuditFacts, FindingSeverity, Need, run_checks
from headrace.advise.audit.check import AuditCheck, Hit
from headrace.advise.audit.checks import CHECKS, check_table
from headrace.advise.audit.collect import collect_spec_file
from headrace.advise.audit.facts import ApiKeyFact, FileFact, TextFact, VersionFact
from tests.unit.advise.conftest import EXAMPLE, NOW, as_running
from tests.unit.advise.planting import InSpec
from tests.unit.advise.spec_faults import IN_SPEC
from tests.unit.advise.system_faults import IN_SYSTEM, InSystem, writable_model

DOCUMENT = YAML(typ="safe").load((EXAMPLE / "headrace.yaml").read_text())


def audited(facts: AuditFacts) -> Audit:
    return run_checks(CHECKS, facts)


def spoiled(folder: Path, fault: InSpec) -> AuditFacts:
    """What is known of the example after a fault was planted in its files."""
    file = folder / "headrace.yaml"
    document = copy.deepcopy(DOCUMENT)
    fault.change(document, folder)
    if document != DOCUMENT:
        file.write_text(json.dumps(document))  # which is YAML, too
    return collect_spec_file(file, now=NOW)


def test_the_hardened_example_has_no_finding_and_its_spec_is_checked_whole(made: Path) -> None:
    audit = audited(collect_spec_file(made / "headrace.yaml", now=NOW))

    assert audit.findings == ()
    of_spec = {check.id for check in CHECKS if set(check.needs) <= {Need.SPEC, Need.FILES}}
    assert set(audit.passed) == of_spec


def test_a_system_that_runs_as_it_should_passes_every_check(healthy: AuditFacts) -> None:
    audit = audited(healthy)

    assert audit.findings == ()
    assert audit.not_checked == ()
    assert audit.passed == tuple(check.id for check in CHECKS)


@pytest.mark.parametrize("fault", IN_SPEC, ids=lambda fault: f"{fault.check}-{fault.name}")
def test_a_fault_in_the_spec_or_its_files_is_found_by_its_check_alone(
    fault: InSpec, hardened: Path
) -> None:
    audit = audited(as_running(spoiled(hardened, fault)))

    found = [(one.id, one.where.rpartition("/")[2]) for one in audit.findings]
    expected = (fault.check, fault.where)
    if fault.check == "HR701":
        assert [check for check, _ in found] == [fault.check]
    else:
        assert found == [expected]


@pytest.mark.parametrize("fault", IN_SYSTEM, ids=lambda fault: f"{fault.check}-{fault.name}")
def test_a_fault_of_the_running_system_is_found_by_its_check_alone(
    fault: InSystem, healthy: AuditFacts
) -> None:
    audit = audited(fault.change(healthy))

    assert [(one.id, one.where) for one in audit.findings] == [(fault.check, fault.where)]


def test_every_check_has_a_planted_fault() -> None:
    planted = {*(fault.check for fault in IN_SPEC), *(fault.check for fault in IN_SYSTEM), "HR410"}

    assert [check.id for check in CHECKS if check.id not in planted] == []
    assert len(planted) >= 35


def test_a_model_that_others_may_write_is_told_besides_that_it_has_no_version(
    healthy: AuditFacts,
) -> None:
    audit = audited(writable_model(healthy))

    assert [one.id for one in audit.findings] == ["HR410", "HR405"]


def test_a_python_model_beside_the_spec_is_known_by_its_content(
    hardened: Path,
) -> None:
    (hardened / "model").mkdir()
    (hardened / "model" / "model.py").write_text("class Mine: ...\n")
    (hardened / "model" / "model.py").chmod(0o644)
    (hardened / "model").chmod(0o755)
    text = (hardened / "headrace.yaml").read_text().replace("digits:1", "./model")
    (hardened / "headrace.yaml").write_text(text)

    audit = audited(collect_spec_file(hardened / "headrace.yaml", now=NOW))

    assert [one.id for one in audit.findings] == ["HR408", "HR405"]


def test_a_finding_says_where_in_the_file_it_is_and_how_to_mend_it(hardened: Path) -> None:
    file = hardened / "headrace.yaml"
    file.write_text(file.read_text().replace("host: 0.0.0.0", "host: 127.0.0.1"))
    file.write_text(file.read_text().replace("access: [key, jwt, certificate]", "access: public"))
    text = file.read_text()
    start = text.index("tiers:")
    text = text[:start] + text[text.index("security:") :]
    file.write_text(text.replace("      tier: gold\n", ""))

    (finding,) = audited(collect_spec_file(file, now=NOW)).findings

    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if "access: p" in text)
    assert (finding.file, finding.line, finding.where) == (str(file), line, "endpoints[0].access")
    assert finding.severity is FindingSeverity.MEDIUM
    assert "'digits' has `access: public`" in finding.evidence
    assert finding.fix == "access: [key]"


def test_what_is_not_there_is_told_on_the_line_of_what_is_around_it(hardened: Path) -> None:
    file = hardened / "headrace.yaml"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(line for line in lines if "slo:" not in line))

    (finding,) = audited(collect_spec_file(file, now=NOW)).findings

    assert finding.id == "HR301"
    assert finding.where == "endpoints[0].slo"
    assert "- name: digits" in file.read_text().splitlines()[(finding.line or 0) - 1]


def test_findings_come_from_the_worst_and_always_in_the_same_order(hardened: Path) -> None:
    file = hardened / "headrace.yaml"
    file.write_text("endpoints: [{name: b, model: b}, {name: a, model: a, access: public}]\n")

    first, second = (audited(collect_spec_file(file, now=NOW)) for _ in range(2))

    ranks = [one.severity.rank for one in first.findings]
    assert ranks == sorted(ranks, reverse=True)
    assert first == second
    same = [one.where for one in first.findings if one.id == "HR301"]
    assert same == ["endpoints[0].slo", "endpoints[1].slo"]


@pytest.mark.parametrize("need", list(Need))
def test_what_could_not_be_found_out_is_told_and_not_called_passed(
    need: Need, healthy: AuditFacts
) -> None:
    audit = audited(replace(healthy, missing={need: "nobody knows"}))

    concerned = [check.id for check in CHECKS if need in check.needs]
    assert [one.id for one in audit.not_checked] == concerned
    assert {one.reason for one in audit.not_checked} == {"nobody knows"}
    assert set(concerned) & set(audit.passed) == set()


def test_severities_are_counted_and_compared() -> None:
    checks = [
        AuditCheck(
            id=f"T{i}",
            title="t",
            severity=severity,
            why="w",
            fix="f",
            needs=(),
            find=lambda _: [Hit(where="x", evidence="y")],
        )
        for i, severity in enumerate(
            [FindingSeverity.LOW, FindingSeverity.MEDIUM, FindingSeverity.MEDIUM]
        )
    ]

    audit = run_checks(checks, AuditFacts(now=NOW))

    assert audit.counts() == {"critical": 0, "high": 0, "medium": 2, "low": 1}
    assert audit.reaches(FindingSeverity.MEDIUM)
    assert not audit.reaches(FindingSeverity.HIGH)


def test_ids_are_of_one_kind_and_used_once() -> None:
    ids = [check.id for check in CHECKS]

    assert ids == sorted(set(ids))
    assert all(len(one) == 5 and one.startswith("HR") and one[2:].isdigit() for one in ids)
    assert len(ids) >= 35
    for check in CHECKS:
        assert check.title
        assert check.why.endswith((".", "?"))
        assert check.fix
        assert f"| `{check.id}` | {check.severity} | {check.title} |" in check_table()


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN RSA PRIVATE KEY-----",
        "# password: hunter2hunter2",
        "postgresql://headrace:hunter2@db/state",
        "AKIAIOSFODNN7EXAMPLE",
        "token = ghp_0123456789abcdefghijABCDEFGHIJ0123",
        "x-api-key: hr_a1b2c3d4_QmFzZTY0LXNlY3JldC1vZi1hLWtleQ",
        "Authorization: Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl",
        "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    ],
)
def test_secrets_are_found_and_never_repeated(text: str, healthy: AuditFacts) -> None:
    facts = replace(healthy, texts=(TextFact(where="line 3", text=text, line=3),))

    (finding,) = audited(facts).findings

    assert (finding.id, finding.line) == ("HR701", 3)
    assert "(not shown)" in finding.evidence
    assert text[-10:] not in finding.evidence


@pytest.mark.parametrize(
    "text",
    [
        "password: ${DB_PASSWORD}",
        "key_file: ./pki/server.key",
        "url: https://models.internal:8443/base",
        "# the token is in the vault",
        "secret: null",
        "access: [key, jwt, certificate]",
        "tier_claim: tier",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN PUBLIC KEY-----",
    ],
)
def test_what_only_speaks_of_secrets_is_none(text: str, healthy: AuditFacts) -> None:
    facts = replace(healthy, texts=(TextFact(where="line 3", text=text, line=3),))

    assert audited(facts).findings == ()


def test_an_upstream_on_this_machine_may_be_plain(hardened: Path) -> None:
    fault = next(fault for fault in IN_SPEC if fault.check == "HR111")
    facts = spoiled(hardened, fault)
    endpoint = facts.spec.endpoints[0]
    assert endpoint.upstream is not None
    near = msgspec.structs.replace(endpoint.upstream, url="http://127.0.0.1:8000")
    spec = facts.spec.model_copy(
        update={"endpoints": (endpoint.model_copy(update={"upstream": near}),)}
    )

    assert audited(replace(facts, spec=spec)).findings == ()


def test_versions_none_of_which_is_signed_are_no_odd_ones_out(healthy: AuditFacts) -> None:
    versions = tuple(
        VersionFact(reference=f"digits:{i}", runtime="onnx", signed=signed, is_served=False)
        for i, signed in enumerate([False, None, False])
    )

    assert audited(replace(healthy, versions=versions)).findings == ()


def test_a_key_whose_use_is_not_kept_is_not_called_unused(healthy: AuditFacts) -> None:
    key = ApiKeyFact(
        name="a",
        scopes=("infer:digits",),
        created=None,
        expires=NOW.replace(year=NOW.year + 1),
        last_used=None,
    )

    assert audited(replace(healthy, keys=(key,))).findings == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda file: replace(file, mode=0o660, has_private_group=True),
        lambda file: replace(file, mode=0o777, exists=False),
    ],
    ids=["its own group", "not there"],
)
def test_a_file_that_nobody_else_gets_to_is_private_whatever_its_mode(
    change: Callable[[FileFact], FileFact], healthy: AuditFacts
) -> None:
    assert healthy.home.state is not None
    home = replace(healthy.home, state=change(healthy.home.state))

    assert audited(replace(healthy, home=home)).findings == ()


def test_a_mode_matters_little_while_directories_above_keep_others_out(healthy: AuditFacts) -> None:
    state = FileFact(path="/home/me/.headrace/state.db", mode=0o644, is_reachable=False)
    home = replace(healthy.home, state=state)

    (finding,) = audited(replace(healthy, home=home)).findings

    assert (finding.id, finding.severity) == ("HR506", FindingSeverity.LOW)
    assert "only the modes of its parent directories protect it" in finding.evidence
