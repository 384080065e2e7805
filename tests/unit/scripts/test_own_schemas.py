"""The schema of Kong's file lets pass what Kong documents, and nothing else."""

import copy
from collections.abc import Callable
from typing import Any, Final

import jsonschema
import pytest

from tests.own_schemas import KONG

_FILE: Final[dict[str, Any]] = {
    "_format_version": "3.0",
    "services": [
        {
            "name": "a",
            "host": "a.headrace",
            "routes": [
                {"name": "a", "protocols": ["http"], "paths": ["~/a$"], "strip_path": False}
            ],
            "plugins": [{"name": "rate-limiting", "config": {"second": 5, "policy": "local"}}],
        }
    ],
    "upstreams": [{"name": "a.headrace", "targets": [{"target": "a:80", "weight": 100}]}],
}


def _complaints(schema: dict[str, Any], one: dict[str, Any]) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(one)]


def test_what_is_right_passes() -> None:
    assert _complaints(KONG, _FILE) == []


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda o: o.update(_format_version="1.1"), id="an older format"),
        pytest.param(lambda o: o["services"][0].update(hots="a"), id="a service's typo"),
        pytest.param(
            lambda o: o["services"][0]["plugins"][0].update(name="rate-limit"),
            id="an unknown plugin",
        ),
        pytest.param(
            lambda o: o["services"][0]["plugins"][0]["config"].update(burst=5), id="a plugin's typo"
        ),
        pytest.param(
            lambda o: o["services"][0]["plugins"][0]["config"].pop("second"),
            id="a limit of nothing",
        ),
        pytest.param(
            lambda o: o["services"][0]["routes"][0].update(paths=["a"]), id="a path with no slash"
        ),
        pytest.param(
            lambda o: o["services"][0]["routes"][0].update(protocols=["grpc"]),
            id="a stripped path of gRPC's",
        ),
        pytest.param(
            lambda o: o["upstreams"][0]["targets"][0].update(weight=65_536), id="too much weight"
        ),
        pytest.param(
            lambda o: o["upstreams"][0].update(hash_on="cookie"), id="a cookie without a name"
        ),
        pytest.param(
            lambda o: o["upstreams"][0].update(hash_on="header", hash_on_cookie="a"),
            id="a header without a name",
        ),
        pytest.param(lambda o: o["upstreams"][0].update(targets=[]), id="no targets"),
    ],
)
def test_each_mistake_in_a_file_of_kongs_is_a_complaint(spoil: Callable[[Any], Any]) -> None:
    wrong = copy.deepcopy(_FILE)
    spoil(wrong)

    assert _complaints(KONG, wrong) != []
