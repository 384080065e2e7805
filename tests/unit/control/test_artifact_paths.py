import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.model.desired import artifact_at

HEX = "ab" * 32


@given(
    st.text(st.characters(exclude_characters="\0", codec="utf-8")),
    st.text(st.characters(exclude_characters="\0/", codec="utf-8"), min_size=1),
)
def test_an_artifact_is_known_by_its_path_in_whatever_home(home: str, filename: str) -> None:
    found = artifact_at(f"/{home}/artifacts/sha256/{HEX}/{filename}")

    assert found is not None
    assert (found.home, found.digest, found.filename) == (f"/{home}", f"sha256:{HEX}", filename)


def test_a_home_may_be_the_root() -> None:
    found = artifact_at(f"/artifacts/sha256/{HEX}/m.onnx")

    assert found is not None
    assert found.home == ""


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/models/m.onnx",
        f"/h/artifacts/sha256/{HEX}",
        f"/h/artifacts/sha256/{HEX}/",
        f"/h/artifacts/sha256/{HEX}/a/b",
        f"/h/artifacts/sha256/{HEX[1:]}/m",
        f"/h/artifacts/sha256/{HEX.upper()}/m",
        f"h/artifacts/sha256/{HEX}/m",
        f"http://h/artifacts/sha256/{HEX}/m",
    ],
)
def test_anything_else_is_no_artifact(path: str) -> None:
    assert artifact_at(path) is None
