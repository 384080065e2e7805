"""Which variables reach which process: none that only others' settings name."""

import string
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from headrace.control.local.sandbox import Environment, options_of

GIVEN = {"PATH": "/bin", "AWS_PROFILE": "prod", "KAFKA": "hush", "REDIS": "hush too", "DB": "key"}
SPEC: dict[str, Any] = {
    "endpoints": [{"name": "m", "features": {"online_store": "redis://u:${REDIS}@h"}}],
    "streams": [{"name": "s", "source": {"broker": "kafka://h?sasl.password=${KAFKA}"}}],
    "jobs": [{"name": "j", "input": "postgresql://u:${DB}@h/d"}],
}


def test_a_secret_reaches_only_whoever_names_it() -> None:
    environment = Environment(variables=GIVEN)
    environment.withhold(SPEC)

    replica = environment.of('{"path": "/m.onnx"}')
    worker = environment.of('{"broker": "kafka://h?sasl.password=${KAFKA}"}')

    assert replica == {"PATH": "/bin", "AWS_PROFILE": "prod"}
    assert worker == {**replica, "KAFKA": "hush"}


def test_what_a_part_of_the_spec_names_reaches_whoever_serves_all_of_it() -> None:
    environment = Environment(variables=GIVEN)
    environment.withhold(SPEC)

    pool = environment.of("{}", parts=["endpoints", "nothing"])

    assert pool == {"PATH": "/bin", "AWS_PROFILE": "prod", "REDIS": "hush too"}


def test_a_secret_stays_one_after_the_spec_has_forgotten_it() -> None:
    environment = Environment(variables=GIVEN)
    environment.withhold(SPEC)
    environment.withhold({})

    assert environment.of() == {"PATH": "/bin", "AWS_PROFILE": "prod"}


def test_names_in_a_file_of_options_are_secrets_too(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("sasl.password=${KAFKA}\n")
    broker = f"kafka://h?properties_file={file}"
    spec = {"streams": [{"source": {"broker": broker}}, {"source": {"broker": "log:x"}}]}
    environment = Environment(variables=GIVEN)
    environment.withhold(spec)

    assert "KAFKA" not in environment.of()
    assert environment.of(options_of(broker))["KAFKA"] == "hush"


names = st.text(string.ascii_uppercase, min_size=1, max_size=3)


@given(
    named=st.lists(st.tuples(names, st.booleans())),
    given_names=st.sets(names),
)
def test_everybody_gets_all_but_what_only_others_name(
    named: list[tuple[str, bool]], given_names: set[str]
) -> None:
    mine = {name for name, is_owned in named if is_owned}
    others = {name for name, is_owned in named if not is_owned}
    document = {"jobs": [f"x${{{name}}}y" for name in mine | others]}
    environment = Environment(variables=dict.fromkeys(given_names, "1"))
    environment.withhold(document)

    found = environment.of(*(f"${{{name}}}" for name in mine))

    assert set(found) == given_names - (others - mine)
