import json
from pathlib import Path

from headrace.core.headers import CALLER_HEADER, TIER_HEADER
from headrace.core.spec.access import AccessSettings, CorsSpec
from headrace.gateway import EnvoySettings
from headrace.gateway.filters import (
    BRIDGING,
    GUARDS,
    SELECTING,
    UNIT_IDLE,
    allowing_origins,
    early_mutations,
    http_filters,
    reading_openai,
    without_auth_filters,
)
from headrace.gateway.limits import FILTERS as LIMIT_FILTERS
from headrace.gateway.limits import limit_filters, local_config
from headrace.gateway.listeners import local_reply_config
from tests.unit.gateway.arbitrary import plain


def test_what_only_the_gateway_may_say_is_stripped_before_anything_reads_it() -> None:
    (mutation,) = plain(early_mutations())

    removed = [step.get("remove") for step in mutation["typed_config"]["mutations"]]
    assert {"x-model", "x-model-version", "x-headrace-caller", "x-headrace-tier"} <= set(removed)


def test_every_kind_of_error_has_a_form_for_grpc_one_for_openai_and_one_in_json() -> None:
    mappers = plain(local_reply_config())["mappers"]

    forms = [mapper["body_format_override"] for mapper in mappers]
    assert all("text_format_source" in form for form in forms[0::3])
    openai = [form["json_format"]["error"] for form in forms[1::3]]
    assert all(set(error) == {"message", "type", "param", "code"} for error in openai)
    assert all(isinstance(form["json_format"]["error"], str) for form in forms[2::3])


def test_filters_for_grpc_are_off_for_every_stream_that_does_not_ask_for_them(
    tmp_path: Path,
) -> None:
    settings = EnvoySettings(run_dir=tmp_path, limits_address="unix:/run/limits.sock")
    filters = http_filters(settings)
    off = {str(one["name"]) for one in filters if one.get("disabled")}

    cors = allowing_origins(CorsSpec(allow_origins=("*",)))
    routed = (*SELECTING, *BRIDGING, *reading_openai([]), *UNIT_IDLE, *cors)
    wanted = (*routed, *GUARDS, *LIMIT_FILTERS)
    assert off == {str(name) for name in wanted}
    assert filters[-1]["name"] == "headrace.router"
    assert not filters[-1].get("disabled")


def test_who_calls_is_asked_before_a_message_is_read_and_what_it_may_after(
    tmp_path: Path,
) -> None:
    filters = http_filters(EnvoySettings(run_dir=tmp_path))
    names = [str(one["name"]) for one in filters]

    before, reads, after = "headrace.identify", "headrace.select", "headrace.authorize"
    assert names.index(before) < names.index(reads)
    limits = names.index("headrace.limits")
    assert names.index("headrace.unit") < names.index(after) < limits
    assert limits < names.index("headrace.refuse")


def test_our_own_requests_meet_every_filter_but_those_that_ask(tmp_path: Path) -> None:
    settings = EnvoySettings(run_dir=tmp_path, limits_address="unix:/run/limits.sock")
    filters = http_filters(settings)

    left = {str(one["name"]) for one in filters} - {
        str(one["name"]) for one in without_auth_filters(filters)
    }
    assert left == {*GUARDS, *LIMIT_FILTERS}


def test_limits_go_by_the_headers_that_say_who_calls() -> None:
    text = json.dumps(
        plain(limit_filters(local=local_config(AccessSettings(), []), flood={}, has_service=True))
    )

    for header in (CALLER_HEADER, TIER_HEADER):
        assert f'"header_name": "{header}"' in text
