"""Files of certificates and keys that a spec names are checked when it is applied."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.control.desired.resolve import Resolver
from headrace.core.spec.parse import SpecError, parse_spec
from headrace.registry import Registry
from tests.certificates import Authority, Files, now
from tests.e2e.gateway.issuing import Issuer
from tests.unit.control.conftest import inspect

PLANTED: Final = "pl4nted-s3cret"
WEEK_S: Final = 7 * 86_400.0


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def mistakes(registry: Registry, document: dict[str, Any]) -> dict[str, str]:
    spec = parse_spec(document)
    try:
        Resolver(registry=registry, inspect=inspect, spec=spec, max_body_bytes=4096).resolve_all()
    except SpecError as error:
        return {mistake.place: mistake.message for mistake in error.mistakes}
    return {}


def gateway(files: Files, **more: object) -> dict[str, Any]:
    tls = {"certificate_file": str(files.certificate), "key_file": str(files.key), **more}
    return {"gateway": {"tls": tls}}


def upstream(files: Files, **more: object) -> dict[str, Any]:
    tls = {"certificate_file": str(files.certificate), "key_file": str(files.key), **more}
    return {"endpoints": [{"name": "m", "upstream": {"url": "https://10.0.0.1", "tls": tls}}]}


def _text(files: Files) -> None:
    files.certificate.write_text(PLANTED)


def _damaged(files: Files) -> None:
    lines = ("-----BEGIN CERTIFICATE-----", PLANTED, "-----END CERTIFICATE-----", "")
    files.certificate.write_text("\n".join(lines))


def _directory(files: Files) -> None:
    files.certificate.unlink()
    files.certificate.mkdir()


def _pipe(files: Files) -> None:
    files.certificate.unlink()
    os.mkfifo(files.certificate)


def _disordered(files: Files) -> None:
    other = Authority(files.certificate.parent / "other").ca.read_bytes()
    files.certificate.write_bytes(files.certificate.read_bytes() + other)


def _other_key(files: Files) -> None:
    other = Authority(files.certificate.parent / "other").server("x")
    files.key.write_bytes(other.key.read_bytes())


BROKEN: Final[dict[str, tuple[Callable[[Files], object], str, str]]] = {
    "missing": (lambda f: f.certificate.unlink(), "certificate_file", "No such file"),
    "text": (_text, "certificate_file", "contains no PEM certificate"),
    "damaged": (_damaged, "certificate_file", "contains no PEM certificate"),
    "directory": (_directory, "certificate_file", "not a regular file"),
    "pipe": (_pipe, "certificate_file", "not a regular file"),
    "order": (_disordered, "certificate_file", "is not signed by the next one"),
    "no key": (lambda f: f.key.unlink(), "key_file", "No such file"),
    "text for a key": (
        lambda f: f.key.write_text(PLANTED),
        "key_file",
        "contains no PEM private key",
    ),
    "another key": (_other_key, "key_file", "the key does not match the certificate"),
    "a key for everybody": (lambda f: f.key.chmod(0o644), "key_file", "chmod 600"),
}


@pytest.mark.parametrize("is_server", [True, False], ids=["gateway", "upstream"])
@pytest.mark.parametrize(("damage", "name", "text"), BROKEN.values(), ids=BROKEN)
def test_a_pair_that_cannot_be_shown_is_a_mistake(
    registry: Registry,
    authority: Authority,
    damage: Callable[[Files], object],
    name: str,
    text: str,
    *,
    is_server: bool,
) -> None:
    files = authority.server("s") if is_server else authority.client("s")
    document = gateway(files) if is_server else upstream(files)
    assert not mistakes(registry, document)

    damage(files)

    place = "gateway.tls" if is_server else "endpoints[0].upstream.tls"
    ((where, message),) = mistakes(registry, document).items()
    assert where == f"{place}.{name}"
    assert text in message
    assert PLANTED not in message


def test_the_gateways_pair_out_of_date_is_a_mistake(
    registry: Registry, authority: Authority
) -> None:
    old = authority.server("old", days=1.0, at=now() - WEEK_S)
    early = authority.server("early", at=now() + WEEK_S)

    assert "expired" in mistakes(registry, gateway(old))["gateway.tls.certificate_file"]
    found = mistakes(registry, gateway(early))
    assert "is not valid before" in found["gateway.tls.certificate_file"]


def test_an_upstreams_pair_out_of_date_stops_nothing(
    registry: Registry, authority: Authority
) -> None:
    """The endpoint alone gets no requests, and says why."""
    old = authority.client("old", days=1.0, at=now() - WEEK_S)

    assert not mistakes(registry, upstream(old))


@pytest.mark.parametrize("content", ["", PLANTED, "-----BEGIN PRIVATE KEY-----\n"])
def test_authorities_that_are_none_are_a_mistake(
    registry: Registry, authority: Authority, tmp_path: Path, content: str
) -> None:
    wrong = tmp_path / "ca.pem"
    wrong.write_text(content)
    server, client = authority.server("s"), authority.client("c")

    good = gateway(server, client_ca_file=str(authority.ca))
    assert not mistakes(registry, good | upstream(client, ca_file=str(authority.ca)))
    bad = gateway(server, client_ca_file=str(wrong)) | upstream(client, ca_file=str(wrong))
    assert set(mistakes(registry, bad)) == {
        "gateway.tls.client_ca_file",
        "endpoints[0].upstream.tls.ca_file",
    }


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"",
        b"\xff" + PLANTED.encode(),
        b'{"keys": []}',
        b'{"keys": [{"kty": "oct", "k": "AA"}]}',
    ],
)
def test_a_key_set_without_a_key_is_a_mistake(
    registry: Registry, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "jwks.json"
    if content is not None:
        file.write_bytes(content)
    provider = {"name": "corp", "issuer": "i", "audiences": ["a"], "jwks_file": str(file)}
    document = {"auth": {"jwt": [provider]}}

    ((where, message),) = mistakes(registry, document).items()
    file.write_text(Issuer().key_set)

    assert where == "auth.jwt[0].jwks_file"
    assert str(file) in message
    assert PLANTED not in message
    assert not mistakes(registry, document)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(secret=st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=6), framed=st.booleans())
def test_no_message_holds_what_a_file_holds(
    registry: Registry, authority: Authority, tmp_path: Path, secret: str, *, framed: bool
) -> None:
    """Law: whatever file is named, its content is in no message."""
    text = f"-----BEGIN {secret}-----\n{secret}\n-----END {secret}-----\n" if framed else secret
    file = tmp_path / "any"
    file.write_text(json.dumps({"keys": text}) if framed else text)
    file.chmod(0o600)
    files = Files(certificate=file, key=file)
    provider = {"name": "corp", "issuer": "i", "audiences": ["a"], "jwks_file": str(file)}
    good = authority.server("s")
    for document in (
        gateway(files, client_ca_file=str(file)),
        gateway(Files(certificate=good.certificate, key=file)),
        upstream(files, ca_file=str(file)),
        {"auth": {"jwt": [provider]}},
    ):
        found = mistakes(registry, document)
        assert found
        assert not any(secret in message for message in found.values())
