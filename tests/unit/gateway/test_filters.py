import re

from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway.filters import early_mutations, everything_but
from headrace.gateway.replies import local_reply_config
from tests.unit.gateway.arbitrary import plain

WORD = "timeout-s"
_near = st.sampled_from([WORD[:i] for i in range(len(WORD) + 1)] + [WORD + "x", "timeout-x"])


@given(st.text(st.sampled_from("timeou-sx"), max_size=12) | _near)
def test_the_pattern_matches_everything_but_the_word(text: str) -> None:
    assert (re.fullmatch(everything_but(WORD), text) is None) == (text == WORD)


def test_the_model_header_is_stripped_before_anything_reads_it() -> None:
    (mutation,) = plain(early_mutations())

    removed = [step.get("remove") for step in mutation["typed_config"]["mutations"]]
    assert {"x-model", "x-model-version"} <= set(removed)


def test_every_kind_of_error_has_a_form_for_grpc_and_one_in_json() -> None:
    mappers = plain(local_reply_config())["mappers"]

    forms = [mapper["body_format_override"] for mapper in mappers]
    assert all("text_format_source" in form for form in forms[0::2])
    assert all("error" in form["json_format"] for form in forms[1::2])
