"""No URL of a spec holds a secret in plain text: a law over every text of the spec's schema."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.spec.parse import SpecError, json_schema, parse_spec

SCHEMA = json_schema()
Steps = tuple[str | int, ...]


def texts(node: dict[str, Any], steps: Steps = (), seen: Steps = ()) -> Iterator[Steps]:
    """The way to every text that the schema allows; a list's first entry stands for all."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name not in seen:
            yield from texts(SCHEMA["$defs"][name], steps, (*seen, name))
        return
    for option in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        yield from texts(option, steps, seen)
    for name, inner in node.get("properties", {}).items():
        if name.endswith("_file") or name == "trusted_keys":
            continue  # a path of this machine
        yield from texts(inner, (*steps, name), seen)
    if isinstance(node.get("items"), dict):
        yield from texts(node["items"], (*steps, 0), seen)
    if isinstance(node.get("additionalProperties"), dict):
        yield from texts(node["additionalProperties"], (*steps, "any"), seen)
    if node.get("additionalProperties") is True:
        yield (*steps, "any")
    if node.get("type") == "string" and "enum" not in node and "const" not in node:
        yield steps


TEXTS = sorted(set(texts(SCHEMA)), key=str)
URLS = {
    ("online_stores", 0, "url"),
    ("streams", 0, "source", "broker"),
    ("streams", 0, "format", "options", "any"),
    ("alerts", "receivers", 0, "webhook", "url"),
    ("alerts", "receivers", 0, "slack", "url"),
    ("auth", "jwt", 0, "jwks_url"),
    ("tracing", "collector"),
    ("endpoints", 0, "upstream", "url"),
    ("kubernetes", "prometheus_url"),
    ("jobs", 0, "input"),
}


def document_with(steps: Steps, text: str) -> dict[str, Any]:
    value: Any = text
    for step in reversed(steps):
        value = [value] if isinstance(step, int) else {step: value}
    assert isinstance(value, dict)
    return value


def place_of(steps: Steps) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps)[1:]


def test_the_walk_comes_to_every_url_of_the_spec() -> None:
    assert set(TEXTS) >= URLS


@pytest.mark.parametrize("steps", TEXTS, ids=place_of)
@pytest.mark.parametrize(
    "url",
    [
        "redis://ann:{}@host/0",
        "kafka://host:9092?sasl.username=ann&sasl.password={}",
        "https://host/x?access_key={}",
        "s3://bucket/x?secret_key={}",
        "https://host/x?a=b&token={}",
    ],
)
def test_a_literal_secret_is_refused_and_not_shown(steps: Steps, url: str) -> None:
    with pytest.raises(SpecError) as error:
        parse_spec(document_with(steps, url.format("hunter2hunter2")))

    [message] = [m.message for m in error.value.mistakes if "in plain text" in m.message]
    assert "use `${NAME}` for an environment variable" in message
    assert place_of(steps) in [mistake.place for mistake in error.value.mistakes]
    assert "hunter2" not in str(error.value)


@given(st.sampled_from(TEXTS), st.text(min_size=8).filter(lambda text: "${" not in text))
def test_no_mistake_shows_a_literal_password(steps: Steps, password: str) -> None:
    quoted = quote(password, safe="")
    with pytest.raises(SpecError) as error:
        parse_spec(document_with(steps, f"redis://ann:{quoted}@host/0"))

    assert f":{quoted}@" not in str(error.value)


def stored() -> dict[str, Any]:
    """What a version that took literal passwords stored."""
    return {
        "online_stores": [{"name": "main", "url": "redis://ann:hunter2@h/0"}],
        "streams": [
            {
                "name": "s",
                "model": "m:1",
                "source": {"broker": "nats://ann:hunter2@h", "topics": ["in"]},
                "sink": {"topic": "out"},
            }
        ],
    }


def test_a_stored_spec_with_a_literal_password_still_loads() -> None:
    spec = parse_spec(stored(), in_force=stored())

    assert spec.online_stores[0].url == "redis://ann:hunter2@h/0"


def test_a_stored_secret_may_stay_and_another_one_is_refused() -> None:
    changed = {**stored(), "endpoints": [{"name": "m", "model": "m:1"}]}
    parse_spec(changed, in_force=stored())
    changed["online_stores"] = [{"name": "main", "url": "redis://ann:other@h/0"}]
    with pytest.raises(SpecError) as error:
        parse_spec(changed, in_force=stored())

    assert [one.place for one in error.value.mistakes] == ["online_stores[0].url"]


def test_what_was_shown_redacted_is_not_taken_for_the_secret() -> None:
    with pytest.raises(SpecError, match="contains a password in plain text"):
        parse_spec({"online_stores": [{"name": "main", "url": "redis://ann:***@h/0"}]})
