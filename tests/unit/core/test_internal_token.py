from pathlib import Path

import pytest

from headrace.core.internal_token import internal_token, is_internal


def environment(path: Path, content: bytes | None) -> dict[str, str]:
    if content is not None:
        path.write_bytes(content)
    return {"HEADRACE_INTERNAL_TOKEN_FILE": str(path)}


def test_who_shows_the_token_is_the_control_plane(tmp_path: Path) -> None:
    there = environment(tmp_path / "token", b"a-token-of-16-bytes\n")

    assert internal_token(there) == b"a-token-of-16-bytes"
    assert is_internal(b"a-token-of-16-bytes", there)
    assert not is_internal(b"a-token-of-16-byteS", there)
    assert not is_internal(None, there)


@pytest.mark.parametrize(
    "content", [None, b"", b"short", b"\xff" * 20, b"two lines of it\nare no header"]
)
def test_without_a_good_token_nobody_is(tmp_path: Path, content: bytes | None) -> None:
    there = environment(tmp_path / "token", content)

    assert internal_token(there) == b""
    assert not is_internal(b"", there)
    assert not is_internal(content or b"x", there)


def test_without_the_variable_nobody_is() -> None:
    assert not is_internal(b"a-token-of-16-bytes", {})
