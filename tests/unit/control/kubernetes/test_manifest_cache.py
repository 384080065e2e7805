import pytest

from headrace.control.kubernetes.manifest_cache import differences


def test_what_was_not_said_is_no_difference() -> None:
    assert differences({"a": 1}, {"a": 1, "b": 2}) == []


def test_places_are_named() -> None:
    wanted = {"spec": {"replicas": 1, "template": {"metadata": {"labels": {"a": "b"}}}}}
    found = {"spec": {"replicas": 2, "template": {"metadata": {"labels": {}}}}}

    assert differences(wanted, found) == ["spec.replicas", "spec.template.metadata.labels.a"]


@pytest.mark.parametrize("empty", ["", [], {}])
def test_what_is_empty_may_be_left_out(empty: object) -> None:
    assert differences({"a": empty}, {}) == []


def test_false_and_zero_are_not_empty() -> None:
    assert differences({"a": False, "b": 0}, {}) == ["a", "b"]


@pytest.mark.parametrize(
    ("wanted", "found"), [("1000m", "1"), ("0.5", "500m"), ("1024Mi", "1Gi"), ("1k", "1000")]
)
def test_quantities_are_compared_as_amounts(wanted: str, found: str) -> None:
    one = {"resources": {"limits": {"memory": wanted}}}

    assert differences(one, {"resources": {"limits": {"memory": found}}}) == []
    assert differences({"name": wanted}, {"name": found}) == ["name"]


def test_another_amount_is_a_difference() -> None:
    one = {"limits": {"memory": "1Gi"}}

    assert differences(one, {"limits": {"memory": "1G"}}) == ["limits.memory"]


def test_items_of_keyed_lists_are_found_wherever_they_stand() -> None:
    wanted = {"env": [{"name": "A", "value": "1"}]}

    assert differences(wanted, {"env": [{"name": "B"}, {"name": "A", "value": "1"}]}) == []
    assert differences(wanted, {"env": [{"name": "A", "value": "2"}]}) == ["env.A.value"]
    assert differences(wanted, {"env": []}) == ["env.A"]


def test_ports_are_told_apart_by_number_and_protocol() -> None:
    wanted = {"ports": [{"containerPort": 8000, "protocol": "TCP", "name": "http"}]}
    found = {"ports": [{"containerPort": 8000, "protocol": "TCP", "name": "web"}]}

    assert differences(wanted, found) == ["ports.8000/TCP.name"]


def test_other_lists_are_values_as_a_whole() -> None:
    assert differences({"command": ["a"]}, {"command": ["a", "b"]}) == ["command"]
    assert differences({"command": ["a"]}, {"command": ["b"]}) == ["command.0"]


def test_a_selector_is_a_value_as_a_whole() -> None:
    assert differences({"selector": {"a": "b"}}, {"selector": {"a": "b", "c": "d"}}) == ["selector"]


@pytest.mark.parametrize("found", [None, 3, "text", [], {"a": []}])
def test_whatever_is_found_is_compared(found: object) -> None:
    assert differences({"a": {"b": 1}}, found) != []
