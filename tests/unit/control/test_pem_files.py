"""A replaced certificate is taken if it is good, whichever way it was replaced."""

import os
from pathlib import Path

import pytest

from headrace.control.gateway.certificates import PemFiles, PemWatch
from tests.certificates import Authority, Files, now


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def _watch(files: Files) -> PemWatch:
    return PemWatch(
        files=PemFiles(
            name="a",
            what="the certificate",
            certificate_file=files.certificate,
            key_file=files.key,
        )
    )


def _taken(watch: PemWatch) -> str:
    """Whom the newest certificate is for, after one look; empty if there is nothing new."""
    found = watch.poll(now())
    if found is None:
        return ""
    watch.take(found)
    assert found.facts is not None
    return found.facts.names[0]


def test_what_is_there_is_read_once(authority: Authority) -> None:
    watch = _watch(authority.server("a", "one.example"))

    assert _taken(watch) == "one.example"
    assert _taken(watch) == ""


def test_it_is_due_while_something_is_new_or_to_be_complained_of(authority: Authority) -> None:
    files = authority.server("a")
    watch = _watch(files)
    due = [watch.is_due()]
    _taken(watch)
    due.append(watch.is_due())
    files.certificate.write_text("hello")
    due.append(watch.is_due())
    watch.poll(now())
    due.append(watch.is_due())
    watch.complaint(now() + 2)
    due.append(watch.is_due())

    assert due == [True, False, True, True, False]


def test_a_rename_and_a_write_in_place_are_seen(authority: Authority) -> None:
    files = authority.server("a", "one.example")
    watch = _watch(files)
    seen = [_taken(watch)]
    files.replace_by(authority.server("b", "two.example"))
    seen.append(_taken(watch))
    authority.server("a", "three.example")  # writes the files themselves
    seen.append(_taken(watch))

    assert seen == ["one.example", "two.example", "three.example"]


def test_the_directory_of_a_kubernetes_secret_is_swapped(authority: Authority) -> None:
    folder = authority.directory
    pair = authority.server("tls")
    for name in ("one", "two"):
        pair = authority.server("tls", f"{name}.example")
        (folder / name).mkdir()
        for file in pair.both:
            file.rename(folder / name / file.name)
    (folder / "..data").symlink_to("one")
    for file in pair.both:
        file.symlink_to(Path("..data") / file.name)
    watch = _watch(pair)
    seen = [_taken(watch)]
    (folder / "..data_tmp").symlink_to("two")
    (folder / "..data_tmp").rename(folder / "..data")
    seen.append(_taken(watch))

    assert seen == ["one.example", "two.example"]


def test_a_pair_that_does_not_fit_leaves_the_one_before(authority: Authority) -> None:
    files = authority.server("a", "one.example")
    other = authority.server("b", "two.example")
    watch = _watch(files)
    _taken(watch)
    files.certificate.write_bytes(other.certificate.read_bytes())

    assert _taken(watch) == ""
    assert "does not match the certificate" in watch.problem
    assert watch.pem is not None
    assert watch.pem.facts is not None
    assert watch.pem.facts.names == ("one.example",)

    files.key.write_bytes(other.key.read_bytes())
    assert _taken(watch) == "two.example"
    assert watch.problem == ""


def test_only_what_stays_wrong_is_complained_of_and_once(authority: Authority) -> None:
    files = authority.server("a")
    watch = _watch(files)
    _taken(watch)
    files.certificate.write_text("hello")
    began = now()
    watch.poll(began)

    assert watch.complaint(began + 0.5) == ""
    assert "no PEM certificate" in watch.complaint(began + 1.5)
    assert watch.complaint(began + 2.0) == ""


def test_files_that_vanish_leave_what_is_in_force(authority: Authority) -> None:
    files = authority.server("a", "one.example")
    watch = _watch(files)
    _taken(watch)
    files.key.unlink()

    assert _taken(watch) == ""
    assert "cannot read" in watch.problem
    assert watch.pem is not None


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602])
def test_a_key_that_everybody_can_read_is_refused_with_the_way_out(
    authority: Authority, mode: int
) -> None:
    files = authority.server("a")
    files.key.chmod(mode)
    watch = _watch(files)

    assert watch.poll(now()) is None
    assert f"chmod 600 {files.key}" in watch.problem

    files.key.chmod(0o600)
    assert watch.poll(now()) is not None


def test_authorities_need_no_key(authority: Authority) -> None:
    watch = PemWatch(
        files=PemFiles(name="ca", what="the authorities", certificate_file=authority.ca)
    )
    found = watch.poll(now())

    assert found is not None
    assert found.key is None
    assert found.facts is not None
    assert found.facts.is_authority


def test_a_file_without_end_is_refused(authority: Authority) -> None:
    files = authority.server("a")
    os.truncate(files.certificate, 5 << 20)
    watch = _watch(files)

    assert watch.poll(now()) is None
    assert "larger than" in watch.problem
