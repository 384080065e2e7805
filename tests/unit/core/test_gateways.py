from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from headrace.control.agents.registry import AgentTimeouts
from headrace.control.base.agents_settings import AgentsSettings
from headrace.control.kubernetes import InstallationName
from headrace.core.gateways import MAX_BEHIND_S, pre_stop_s
from headrace.core.spec.access import TlsSpec

GUIDE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "kubernetes.md"


@given(st.floats(min_value=0.1, max_value=3600.0))
def test_a_pod_that_leaves_answers_until_no_gateway_is_waited_for_any_more(behind_s: float) -> None:
    assert behind_s + 5 <= pre_stop_s(behind_s) < behind_s + 7


def test_everybody_means_the_same_by_behind() -> None:
    tls = TlsSpec(certificate_file="c", key_file="k")

    assert AgentsSettings(tls=tls).max_behind_s == MAX_BEHIND_S
    assert AgentTimeouts().max_behind_s == MAX_BEHIND_S
    assert InstallationName(namespace="models").max_behind_s == MAX_BEHIND_S


def test_the_guide_says_for_how_long_a_pod_still_answers() -> None:
    text = " ".join(GUIDE.read_text().split())

    assert f"for {pre_stop_s()} s it still answers" in text
    assert f"`--gateway-max-behind-s` ({MAX_BEHIND_S:g} s)" in text
