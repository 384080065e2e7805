import json
import re
from pathlib import Path

import pytest
import typer

from headrace.cli.base.spec_file import changes_text, not_ready_text, read_spec
from headrace.cli.up.settings import ModelOptions
from headrace.cli.up.start import document_for
from headrace.core import InvalidArgumentError
from headrace.core.spec.parse import parse_spec
from headrace.registry import Registry
from headrace.runtimes import inspect_model
from tests.gguf_models import gguf
from tests.unit.cli.conftest import Command

SPEC = "version: 1\nendpoints: [{name: m, model: './m.onnx', replicas: 2}]\n"


def test_a_good_spec_is_counted(headrace: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(SPEC)

    without = headrace("check", "-f", file)
    (tmp_path / "m.onnx").touch()
    outcome = headrace("check", file)

    assert (without.status, outcome.status) == (0, 0)
    assert f"warning: endpoints[0]: the model '{tmp_path}/m.onnx' is not on" in without.err
    assert outcome.err == f"{file}: valid, 1 endpoint\n"


@pytest.mark.parametrize(
    ("broker", "workers", "is_warned"),
    [
        ("redis://h/0", "{min: 1, max: 2}", True),
        ("nats://h", "1", False),
        ("pulsar://h", "2", True),
        ("pulsar+ssl://h?admin=https://a&subscription=key_shared", "2", False),
        ("kafka://h", "3", False),
    ],
)
def test_workers_that_break_the_order_of_keys_are_a_warning(
    headrace: Command, tmp_path: Path, broker: str, workers: str, *, is_warned: bool
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "version: 1\nstreams:\n  - name: s\n    model: m:1\n    sink: {topic: out}\n"
        f"    source: {{broker: '{broker}', topics: [in]}}\n    workers: {workers}\n"
    )

    outcome = headrace("check", "-f", file)

    assert outcome.status == 0
    assert ("streams[0]: its workers share a topic" in outcome.err) == is_warned


def test_every_mistake_is_told_with_its_line(headrace: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("version: 1\nendpoints:\n  - name: a b\n    model: m:1\n    replica: 2\n")

    outcome = headrace("check", "-f", file)

    assert outcome.status == 1
    assert "endpoints[0].name (line 3)" in outcome.err
    assert "did you mean 'replicas'?" in outcome.err


def test_a_spec_that_is_no_text_is_told(headrace: Command, tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_bytes(b"\xff\xfe")

    assert "not UTF-8 text" in headrace("check", "-f", file).err


def test_columns_of_a_payload_log_are_compared_with_stored_models(
    headrace: Command, tmp_path: Path, model: Path, home: Path
) -> None:
    headrace("models", "push", "m", model)
    file = tmp_path / "a.yaml"
    answers = []
    for reference in ("m:1", str(model), "other:1"):
        entry = f"{{name: m, model: '{reference}', payload_log: {{drop: [input.inptu]}}}}"
        file.write_text(f"version: 1\nendpoints: [{entry}]\n")
        answers.append(headrace("check", "-f", file, "--home", home))

    assert [answer.status for answer in answers] == [1, 1, 0]
    for answer in answers[:2]:
        assert "endpoints[0].payload_log.drop[0]" in answer.err
        assert "it has input.input" in answer.err


def test_settings_that_stored_models_do_not_support_are_mistakes(
    headrace: Command, tmp_path: Path, model: Path, home: Path
) -> None:
    registry = Registry(home, inspect_model)
    (tmp_path / "chat.gguf").write_bytes(gguf())
    registry.push("chat", tmp_path / "chat.gguf")
    registry.push("m", model)
    file = tmp_path / "a.yaml"
    file.write_text("""\
version: 1
pools: [{name: p}]
endpoints:
  - {name: chat, model: "chat:1", pool: p}
  - {name: m, model: "m:1", llm: {slots: 2}, limits: {tokens_per_day: 9}, fallback: chat}
  - {name: n, versions: [{model: "m:1", weight: 100}], runtime: gguf}
streams:
  - {name: s, endpoint: chat, source: {broker: "log:a", topics: [a]}, sink: {topic: b}}
""")

    outcome = headrace("check", "-f", file, "--home", home)

    assert outcome.status == 1
    places = re.findall(r"^  (\S+)(?: \(line \d+\))?: ", outcome.err, re.MULTILINE)
    assert places == [
        "endpoints[0].pool",
        "endpoints[1].llm",
        "endpoints[1].limits.tokens_per_day",
        "endpoints[2].versions[0].model",
        "endpoints[1].fallback",
        "streams[0].endpoint",
    ]


def test_what_is_not_checked_without_the_model_is_named(
    headrace: Command, tmp_path: Path, home: Path
) -> None:
    (tmp_path / "chat.gguf").write_bytes(gguf())
    file = tmp_path / "a.yaml"
    entries = "[{name: chat, model: ./chat.gguf, fallback: spare}, {name: spare, model: 'spare:2'}"
    file.write_text(f"version: 1\nendpoints: {entries}, {{name: plain, model: 'plain:1'}}]\n")

    outcome = headrace("check", "-f", file, "--home", home)

    assert outcome.status == 0
    assert outcome.err == "".join(
        f"not checked: endpoints[{i}]: settings that depend on the model, since the registry of "
        f"{home} does not have '{model}'; `headrace apply` checks them\n"
        for i, model in enumerate((tmp_path / "chat.gguf", "spare:2"))
    ) + (f"{file}: valid, 3 endpoints\n")
    assert not home.exists()


def test_a_receiver_whose_secret_is_missing_is_a_warning(
    headrace: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "url").write_text("https://chat.example/x")
    (tmp_path / "m.onnx").touch()
    file = tmp_path / "a.yaml"
    receivers = "[{name: chat, slack: {url: '${CHAT_URL}'}}, {name: ops, webhook: {url_file: url}}]"
    file.write_text(f"{SPEC}alerts: {{receivers: {receivers}}}\n")
    monkeypatch.delenv("CHAT_URL", raising=False)
    missing = headrace("check", "-f", file)
    monkeypatch.setenv("CHAT_URL", "https://chat.example/y")
    complete = headrace("check", "-f", file)

    assert (missing.status, complete.status) == (0, 0)
    assert "warning: receiver 'chat' cannot be used from here" in missing.err
    assert "CHAT_URL" in missing.err
    assert "ops" not in missing.err
    assert "warning" not in complete.err


def test_the_schema_is_json(headrace: Command) -> None:
    assert json.loads(headrace("schema").out)["title"]


def test_changes_are_a_line_each() -> None:
    assert changes_text({"changes": ["a", "b"]}) == ["a", "b"]
    assert changes_text({"changes": []}) == ["no changes"]
    assert changes_text({"changes": ["a"], "warnings": ["b"]}) == ["a", "warning: b"]
    assert not_ready_text({"not_ready": {"m": "loading"}}) == ["not ready: m: loading"]
    assert not_ready_text({}) == []


def document(target: Path | None, home: Path, name: str | None = None) -> object:
    return document_for(target, ModelOptions(name=name), home=home)


def test_a_model_file_is_an_endpoint_of_its_name(tmp_path: Path) -> None:
    file = tmp_path / "my model.onnx"
    file.touch()

    assert document_for(file, ModelOptions(replicas=3), home=tmp_path) == {
        "version": 1,
        "endpoints": [{"name": "my-model", "model": str(file), "replicas": 3}],
    }
    assert document(file, tmp_path, name="x") == {
        "version": 1,
        "endpoints": [{"name": "x", "model": str(file)}],
    }


def test_the_rule_in_one_line_is_two_lines_of_the_spec(tmp_path: Path) -> None:
    file = tmp_path / "fraud.onnx"
    file.touch()
    spec = f"""\
version: 1
endpoints:
  - name: fraud
    model: {file}
    slo: {{latency_s: 0.15}}
    autoscale: {{max_replicas: 4}}
"""

    for text in ("150ms", "0.15s", " 150ms", "150000us"):
        one_line = document_for(file, ModelOptions(slo_p99=text, max_replicas=4), home=tmp_path)
        assert one_line is not None
        assert parse_spec(one_line).document() == parse_spec(spec).document()


def test_rows_of_a_model_file_are_declared_independent_by_an_option(tmp_path: Path) -> None:
    file = tmp_path / "fraud.onnx"
    file.touch()
    one_line = document_for(file, ModelOptions(rows_independent=True), home=tmp_path)
    assert one_line is not None
    assert one_line["endpoints"][0]["batching"] == {"rows_independent": True}

    spec = tmp_path / "headrace.yaml"
    spec.write_text(SPEC)
    with pytest.raises(typer.BadParameter, match=r"batching: \{rows_independent: true\}"):
        document_for(spec, ModelOptions(rows_independent=True), home=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("150", "'150' has no unit; write 150ms or 150s"),
        ("-5ms", "'-5ms' is not a duration such as 50ms"),
        ("0ms", "'0ms' is not a duration such as 50ms"),
        ("fast", "'fast' is not a duration such as 50ms"),
        ("", "'' is not a duration such as 50ms"),
        ("nanms", "'nanms' is not a duration"),
        ("2d", "'2d': an SLO is less than or equal to 86400 seconds"),
    ],
)
def test_what_is_no_slo_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "model.onnx"
    file.touch()

    with pytest.raises(typer.BadParameter, match=re.escape(message)):
        document_for(file, ModelOptions(slo_p99=text), home=tmp_path)


def test_fewer_copies_than_it_begins_with_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.touch()

    with pytest.raises(typer.BadParameter, match="2 is less than the initial --replicas 3"):
        document_for(file, ModelOptions(replicas=3, max_replicas=2), home=tmp_path)


def test_a_spec_file_keeps_its_meaning(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(SPEC)
    expected = parse_spec(SPEC, base_dir=tmp_path)

    for target in (file, tmp_path):
        found = document(target, tmp_path)
        assert isinstance(found, dict)
        assert parse_spec(found) == expected


def test_a_directory_without_a_spec_is_a_model(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()

    assert document(folder, tmp_path) == {
        "version": 1,
        "endpoints": [{"name": "repository", "model": str(folder)}],
    }


def test_without_a_target_the_spec_here_comes_first_then_what_ran(
    tmp_path: Path, home: Path
) -> None:
    with pytest.raises(typer.BadParameter, match="nothing to serve"):
        document(None, home)
    home.mkdir()
    (home / "state.json").write_text("{}")
    assert document(None, home) is None
    (tmp_path / "headrace.yaml").write_text(SPEC)
    assert document(None, home) is not None


XGBOOST = '{"learner": {"attributes": {}, "feature_names": []}, "version": [3, 2, 0]}'


def test_a_json_file_is_a_spec_unless_it_is_a_model(tmp_path: Path) -> None:
    model, spec = tmp_path / "fraud.json", tmp_path / "spec.json"
    model.write_text(XGBOOST)
    spec.write_text('{"version": 1, "endpoints": [{"name": "m", "model": "m:1"}]}')

    assert document(model, tmp_path) == {
        "version": 1,
        "endpoints": [{"name": "fraud", "model": str(model)}],
    }
    served = document_for(spec, ModelOptions(), home=tmp_path)
    assert served is not None
    assert [endpoint["model"] for endpoint in served["endpoints"]] == ["m:1"]


def test_a_model_passed_as_a_spec_names_the_command_that_serves_it(tmp_path: Path) -> None:
    text, binary = tmp_path / "fraud.json", tmp_path / "fraud.cbm"
    text.write_text(XGBOOST)
    binary.write_bytes(b"CBM1\xff\xff")

    for file, runtime in ((text, "xgboost"), (binary, "catboost")):
        message = f"is a model of the runtime '{runtime}', not a spec; serve it with `headrace up"
        with pytest.raises(InvalidArgumentError, match=message):
            read_spec(file)


@pytest.mark.slow
def test_a_stored_version_is_an_endpoint_of_its_name(home: Path, model: Path) -> None:
    Registry(home, inspect_model).push("fraud", model)

    for reference in ("fraud", "fraud:1"):
        assert document_for(reference, ModelOptions(), home=home) == {
            "version": 1,
            "endpoints": [{"name": "fraud", "model": reference}],
        }
    with pytest.raises(typer.BadParameter, match=r"no file or directory 'fraud:2', and .*fraud"):
        document_for("fraud:2", ModelOptions(), home=home)
    with pytest.raises(typer.BadParameter, match=r"no file or directory 'there/model'$"):
        document_for("there/model", ModelOptions(), home=home)


def test_flags_that_the_spec_answers_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "headrace.yaml"
    file.write_text(SPEC)

    with pytest.raises(typer.BadParameter, match="not valid with a spec file; set `name`"):
        document(file, tmp_path, name="x")
    with pytest.raises(typer.BadParameter, match=r"set `slo: {latency_s: 0.15}` of the endpoint"):
        document_for(file, ModelOptions(slo_p99="1s", max_replicas=2), home=tmp_path)


def test_flags_without_a_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")

    with pytest.raises(typer.BadParameter, match="the stored state is resumed") as refused:
        document_for(None, ModelOptions(max_replicas=2), home=tmp_path)

    assert refused.value.param_hint == "--max-replicas"
