"""Many expositions become one that a Prometheus can read."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from headrace.control.api.system import named
from headrace.observe.metrics import MetricSource, gauge, merge
from headrace.observe.metrics import text as as_text
from tests.metrics import exposed

ONE = """\
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total{model="m",code="200"} 3
requests_total{model="m",code="500"} 1
# HELP wait_seconds Wait.
# TYPE wait_seconds histogram
wait_seconds_bucket{le="0.1"} 2
wait_seconds_bucket{le="+Inf"} 3
wait_seconds_sum 0.5
wait_seconds_count 3
"""


def families(text: str) -> dict[str, list[tuple[str, dict[str, str], float]]]:
    return {
        family.name: [(s.name, s.labels, s.value) for s in family.samples]
        for family in text_string_to_metric_families(text)
    }


def replica(name: str, text: str = ONE) -> MetricSource:
    return MetricSource(text=text, labels={"replica": name})


def merge_expositions(sources: list[MetricSource]) -> str:
    return as_text(merge([], sources).values()).decode()


def test_a_family_stands_once_with_the_samples_of_all() -> None:
    text = merge_expositions([replica("a"), replica("b")])
    found = families(text)

    assert text.count("# TYPE requests_total ") == 1
    assert text.count("# HELP wait_seconds ") == 1
    assert len(found["requests"]) == 4
    assert {labels["replica"] for _, labels, _ in found["wait_seconds"]} == {"a", "b"}
    assert len(found["wait_seconds"]) == 8


def test_a_sample_keeps_its_own_label_of_the_same_name() -> None:
    text = merge_expositions([replica("a", 'x{replica="own",preplica="no"} 1\n')])

    assert text == 'x{replica="own",preplica="no"} 1\n'


def test_labels_are_escaped_and_braces_in_values_survive() -> None:
    text = merge_expositions([replica('a"\\\n', 'x{path="/{id}, \\"q\\""} 1 1700000000\n')])
    [(_, labels, _)] = families(text)["x"]

    assert labels == {"replica": 'a"\\\n', "path": '/{id}, "q"'}


def test_lines_that_are_no_samples_are_dropped() -> None:
    broken = "<html>\nx{unclosed 1\nok 1\n# EOF\n\n# TYPE empty gauge\n"

    assert merge_expositions([MetricSource(text=broken)]) == "ok 1\n"


def test_the_first_type_holds() -> None:
    text = merge_expositions(
        [
            MetricSource(text="# TYPE x gauge\nx 1\n"),
            replica("b", "# HELP x Later.\n# TYPE x counter\nx 2\n"),
        ]
    )

    assert text == '# HELP x Later.\n# TYPE x gauge\nx 1\nx{replica="b"} 2\n'


def test_what_says_nothing_of_itself_is_told_whose_it_is() -> None:
    foreign = "# TYPE rq counter\nrq 1\n# TYPE rq_total counter\nrq_total 1\n"
    text = merge_expositions([MetricSource(text=foreign, help="Envoy's own.")])

    assert "# HELP rq Envoy's own.\n# TYPE rq untyped\n" in text
    assert "# TYPE rq_total counter\n" in text


def test_some_metrics_can_be_asked_for_by_how_their_names_begin() -> None:
    families = merge([], [replica("a")])

    assert set(named(families, ["wait_", "other"])) == {"wait_seconds"}
    assert named(families, []) == families


def test_a_gauge_of_our_own_is_an_exposition() -> None:
    text = exposed([gauge("up", "Up.", [((), 1.0), ((("a", 'q"'),), 0.0)])])

    assert families(text)["up"] == [("up", {}, 1.0), ("up", {"a": 'q"'}, 0.0)]


_pieces = st.sampled_from(
    ["x", " ", ":", "1", "{", "}", 'a="b"', ",", "\n", "# TYPE ", "# HELP ", "NaN", "\\", '"', "-"]
)


@given(st.lists(st.text(max_size=100) | st.lists(_pieces).map("".join), max_size=3))
def test_whatever_processes_say_the_answer_can_be_read(texts: list[str]) -> None:
    merged = merge_expositions([*(replica(str(i), t) for i, t in enumerate(texts)), replica("z")])

    assert len(families(merged)["requests"]) >= 2
