"""What may stand under `windows` of a stream, and how its mistakes are told."""

import pytest

from headrace.core.spec.parse import SpecError, StreamSpec, parse_spec

SPEC = """
version: 1
streams:
  - name: pay
    model: /models/m.onnx
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: out}
"""
HOUR = "{name: n, size_s: 3600}"


def parsed(windows: str, spec: str = SPEC) -> StreamSpec:
    return parse_spec(f"{spec}    windows: {windows}\n").streams[0]


def test_a_window_counts_and_tumbles_if_nothing_else_is_said() -> None:
    windows = parsed(f"{{windows: [{HOUR}]}}").windows

    assert windows is not None
    (window,) = windows.windows
    assert (window.function, window.slide_s, window.key, window.field) == ("count", None, "", "")
    assert (windows.time, windows.lateness_s, windows.checkpoint_s) == ("", 60.0, 0.2)


@pytest.mark.parametrize(
    ("window", "place", "said"),
    [
        ("{size_s: 5}", "[0].name", "is missing"),
        ("{name: '', size_s: 5}", "[0].name", "at least 1"),
        ("{name: n}", "[0].size_s", "is missing"),
        ("{name: n, size_s: 0}", "[0].size_s", "greater than or equal"),
        ("{name: n, size_s: .nan}", "[0].size_s", "got nan"),
        ("{name: n, size_s: .inf}", "[0].size_s", "less than or equal"),
        ("{name: n, size_s: 5, slide_s: 9}", "[0].slide_s", "more than 'size_s', which is 5"),
        ("{name: n, size_s: 86400, slide_s: 0.001}", "[0].slide_s", "86400000 parts"),
        ("{name: n, size_s: 3600, slide_s: 0.7001}", "[0].slide_s", "larger value that divides"),
        ("{name: n, size_s: 5, function: sum}", "[0].field", "'sum' needs 'field'"),
        ("{name: n, size_s: 5, function: median}", "[0].function", "'mean'"),
        ("{name: n, size_s: 5, by: card}", "[0].by", "is not a setting"),
        (f"{HOUR}, {HOUR}", "[1].name", "already the name of streams[0].windows.windows[0]"),
    ],
)
def test_a_window_that_cannot_be_kept_is_told_with_its_place(
    window: str, place: str, said: str
) -> None:
    with pytest.raises(SpecError) as error:
        parsed(f"{{windows: [{window}]}}")

    assert f"streams[0].windows.windows{place} (line 8)" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "place", "said"),
    [
        ("log:demo", "nats://host", "streams[0].windows", "topics have partitions"),
        ("log:demo", "rediss://host", "streams[0].windows", "log: or kafka:"),
        ("log:demo", "pulsar+ssl://host", "streams[0].windows", "log: or kafka:"),
        ("{topic: out}", "{topic: out}\n    format: {kind: raw}", "streams[0].windows", "'raw'"),
        (
            "{topic: out}",
            "{topic: out}\n    format: {kind: open_inference}",
            "streams[0].windows",
            "'open_inference' has none",
        ),
    ],
)
def test_windows_where_none_can_be_are_a_mistake(old: str, new: str, place: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        parsed(f"{{windows: [{HOUR}]}}", SPEC.replace(old, new))

    assert f"{place} (line " in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("broker", ["kafka://host", "log:///logs/a", "${BROKER}"])
def test_a_broker_with_partitions_or_one_that_is_not_known_yet_may_have_windows(
    broker: str,
) -> None:
    found = parsed(f"{{windows: [{HOUR}]}}", SPEC.replace("log:demo", broker))

    assert found.windows is not None


@pytest.mark.parametrize(
    ("windows", "place", "said"),
    [
        ("{windows: []}", "streams[0].windows.windows", "at least 1"),
        ("{}", "streams[0].windows.windows", "is missing"),
        ("[n]", "streams[0].windows", "should be a mapping"),
        ("{windows: n}", "streams[0].windows.windows", "should be a list"),
        (f"{{windows: [{HOUR}], lateness_s: -1}}", "streams[0].windows.lateness_s", "greater"),
        (f"{{windows: [{HOUR}], ahead_s: .inf}}", "streams[0].windows.ahead_s", "less than"),
        (f"{{windows: [{HOUR}], state: /tmp}}", "streams[0].windows.state", "not a setting"),
    ],
)
def test_what_is_wrong_around_windows_is_told_too(windows: str, place: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        parsed(windows)

    assert f"{place} (line 8)" in str(error.value)
    assert said in str(error.value)
