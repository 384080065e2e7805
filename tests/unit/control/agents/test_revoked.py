"""Which lines name a certificate, and what a list that changes comes to."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.agents.tls import RevokedAgents, fingerprints_in
from headrace.core import FailedPreconditionError

A, B = "a1" * 32, "b2" * 32


def test_a_fingerprint_is_read_as_openssl_prints_it_and_plain() -> None:
    colons = ":".join(A[i : i + 2] for i in range(0, 64, 2)).upper()
    text = f"# lost in May\nsha256 Fingerprint={colons}\n\n  {B}  # gw-2\nSHA256:{A}\r\n"

    assert fingerprints_in(text) == {A, B}


@pytest.mark.parametrize("line", ["gw-1", A[:-1], f"{A}0", f"{A} {B}", "zz" * 32, "\x00", "=" + A])
def test_what_is_no_fingerprint_is_an_error_that_names_the_line(line: str) -> None:
    with pytest.raises(FailedPreconditionError, match=r"line 2: .* is no SHA-256 fingerprint"):
        fingerprints_in(f"{B}\n{line}")


@given(st.text())
def test_no_text_does_anything_else_than_be_read_or_refused(text: str) -> None:
    try:
        found = fingerprints_in(text)
    except FailedPreconditionError:
        return
    assert all(len(one) == 64 for one in found)


def write(path: Path, text: str, mtime: int) -> None:
    path.write_text(text)
    os.utime(path, (mtime, mtime))


def test_another_list_counts_and_what_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "revoked"
    write(path, A, 1)
    revoked = RevokedAgents(path=path)
    revoked.open()
    assert revoked.has(A)
    assert revoked.poll() is None

    write(path, "nonsense", 2)
    assert revoked.poll() is None
    assert "line 1" in revoked.problem
    path.unlink()
    assert revoked.poll() is None
    assert "No such file" in revoked.problem
    assert revoked.has(A)

    write(path, B, 3)
    found = revoked.poll()
    assert found == frozenset({B})
    revoked.take(found)
    assert (revoked.has(A), revoked.has(B), revoked.problem) == (False, True, "")


def test_a_list_that_could_not_be_read_is_read_again_though_it_looks_the_same(
    tmp_path: Path,
) -> None:
    path = tmp_path / "revoked"
    write(path, A, 1)
    revoked = RevokedAgents(path=path)
    revoked.open()

    write(path, "z" * 64, 2)
    assert revoked.poll() is None
    write(path, B, 2)  # of the same size and time

    assert revoked.poll() == frozenset({B})
    assert not revoked.problem


def test_a_list_that_is_not_there_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match="cannot read the list of revoked gateways"):
        RevokedAgents(path=tmp_path / "none").open()
    RevokedAgents().open()
