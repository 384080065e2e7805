"""Online stores are named once, and endpoints and streams refer to them by name."""

from typing import Any

import pytest

from headrace.core.spec.parse import SpecError, parse_spec

NAMES = "online_stores: [{name: NAME, url: URL}]"


def document(
    store: str | None, *, url: str = "sqlite:////srv/f/x.db", **more: object
) -> dict[str, Any]:
    features = {"service": "s"} if store is None else {"service": "s", "online_store": store}
    return {
        "online_stores": [{"name": "main", "url": url}],
        "endpoints": [{"name": "m", "model": "m:1", "features": features, **more}],
    }


def mistakes(value: dict[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as error:
        parse_spec(value)
    return [(one.place, one.message) for one in error.value.mistakes]


def test_a_name_stands_for_the_url_as_written() -> None:
    spec = parse_spec(document("main", url="redis://:${PW}@h/0", network=True))

    assert spec.endpoints[0].features is not None
    assert spec.store_url(spec.endpoints[0].features.online_store) == "redis://:${PW}@h/0"
    assert spec.store_url(None) is None


@pytest.mark.parametrize("url", ["redis://h/0", "sqlite:////srv/x.db", "${URL}", "/srv/x.db"])
def test_a_url_in_place_of_a_name_is_refused_with_the_way_to_name_it(url: str) -> None:
    [(place, message)] = [one for one in mistakes(document(url)) if "should be" in one[1]]

    assert place == "endpoints[0].features.online_store"
    assert NAMES in message


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    place = "endpoints[0].features.online_store"
    unnamed = {**document("other"), "online_stores": []}

    assert mistakes(document("other")) == [
        (place, "there is no online store 'other' in `online_stores`; there are: main")
    ]
    assert mistakes(unnamed) == [
        (place, "there is no online store 'other' in `online_stores`; none is declared")
    ]


def test_names_are_unique() -> None:
    twice = document(None)
    twice["online_stores"] *= 2

    assert mistakes(twice) == [
        ("online_stores[1].name", "'main' is already the name of another online store")
    ]


def test_a_store_on_the_network_needs_the_network() -> None:
    [(place, message)] = mistakes(document("main", url="redis://h/0"))

    assert place == "endpoints[0].features.online_store"
    assert "add `network: true`" in message
    parse_spec(document("main", url="redis://h/0", network=True))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///x.db", "must be absolute: sqlite:////PATH"),
        ("feast://repo", "must be absolute: feast:///PATH"),
        ("sqlite:////nonexist/${PATH}/x.db", "must not contain `${NAME}`"),
        ("feast:///${PW}", "must not contain `${NAME}`"),
        ("/srv/x.db", "does not match"),
        ("redis://ann:hunter2@h/0", "contains a password in plain text; use `${NAME}`"),
    ],
)
def test_a_url_that_is_not_plain_is_refused(url: str, said: str) -> None:
    [(place, message)] = mistakes(document("main", url=url, network=True))

    assert place == "online_stores[0].url"
    assert said in message
    assert "hunter2" not in message
