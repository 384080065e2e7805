"""What may be shown, and what is refused with which reason."""

import contextlib
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from headrace.gateway.pem import (
    CertificateRefusedError,
    certificates_alone,
    check_authorities,
    check_pair,
    first_certificate,
    read_certificates,
)
from tests.certificates import Authority, Files, now

DAY_S = 86_400.0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("pem"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Files:
    return authority.server("server", "models.example", "10.0.0.1")


def _bytes(files: Files) -> tuple[bytes, bytes]:
    return files.certificate.read_bytes(), files.key.read_bytes()


def test_a_pair_says_whom_it_is_for_and_until_when(server: Files) -> None:
    found = check_pair(*_bytes(server), now=now())

    assert found.names == ("models.example", "10.0.0.1")
    assert found.subject == "CN=models.example"
    assert found.issuer == "CN=authority ca"
    assert found.key == "ECDSA secp256r1"
    assert found.not_after - now() == pytest.approx(10 * DAY_S, abs=60)
    assert not found.is_authority
    assert len(found.fingerprint) == 64


def test_a_chain_follows_its_signers(authority: Authority, server: Files) -> None:
    chain, key = _bytes(server)

    assert check_pair(chain + authority.ca.read_bytes(), key, now=now()).names
    with pytest.raises(CertificateRefusedError, match="is not signed by the next one"):
        check_pair(chain + chain, key, now=now())


def test_the_key_of_another_certificate_is_refused(authority: Authority, server: Files) -> None:
    other = authority.server("other")

    with pytest.raises(CertificateRefusedError, match="the key does not match the certificate"):
        check_pair(server.certificate.read_bytes(), other.key.read_bytes(), now=now())


@pytest.mark.parametrize(
    ("at", "reason"), [(20 * DAY_S, "the certificate expired"), (-DAY_S, "is not valid before")]
)
def test_a_certificate_out_of_date_is_refused(server: Files, at: float, reason: str) -> None:
    with pytest.raises(CertificateRefusedError, match=reason):
        check_pair(*_bytes(server), now=now() + at)


def test_a_clients_certificate_is_none_for_a_server(authority: Authority) -> None:
    pair = _bytes(authority.client("app"))

    assert check_pair(*pair, now=now(), server=False).names == ("app",)
    with pytest.raises(CertificateRefusedError, match="does not include servers"):
        check_pair(*pair, now=now())


@pytest.mark.parametrize(
    ("certificate", "reason"),
    [
        (b"", "no PEM certificate"),
        (b"hello", "no PEM certificate"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no PEM certificate"),
        (b"-----BEGIN PRIVATE KEY-----\n", "contains a key but no certificate"),
    ],
)
def test_what_is_no_certificate_is_refused(certificate: bytes, reason: str) -> None:
    with pytest.raises(CertificateRefusedError, match=reason):
        read_certificates(certificate)


def test_what_is_no_key_is_refused(server: Files) -> None:
    chain = server.certificate.read_bytes()
    locked = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass")
    )

    with pytest.raises(CertificateRefusedError, match="contains no PEM private key"):
        check_pair(chain, chain, now=now())
    with pytest.raises(CertificateRefusedError, match="passphrase"):
        check_pair(chain, locked, now=now())


@pytest.mark.parametrize("kind", ["small", "edwards"])
def test_a_weak_or_foreign_key_is_refused(kind: str) -> None:
    key = (
        rsa.generate_private_key(65537, 1024)  # noqa: S505  # that it is weak is the point
        if kind == "small"
        else ed25519.Ed25519PrivateKey.generate()
    )
    chain = _self_signed(key)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    with pytest.raises(CertificateRefusedError, match=r"at least 2048|ECDSA"):
        check_pair(chain, pem, now=now())


def test_of_a_chain_the_first_can_be_trusted_alone(authority: Authority, server: Files) -> None:
    chain = server.certificate.read_bytes() + authority.ca.read_bytes()

    assert first_certificate(chain) == server.certificate.read_bytes()


def test_what_else_stands_in_a_file_is_left_out(server: Files) -> None:
    chain, key = _bytes(server)
    combined = "# für dich\n".encode() + key + chain

    assert certificates_alone(combined) == chain
    assert check_pair(combined, combined, now=now()).names


@pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")
@given(data=st.data())
def test_a_damaged_certificate_is_refused_or_read_and_nothing_else(
    server: Files, data: st.DataObject
) -> None:
    der = bytearray(ssl.PEM_cert_to_DER_cert(server.certificate.read_text()))
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    pem = ssl.DER_cert_to_PEM_cert(bytes(der)).encode()

    with contextlib.suppress(CertificateRefusedError):
        read_certificates(pem)
    with contextlib.suppress(CertificateRefusedError):
        check_pair(pem, server.key.read_bytes(), now=now())


def test_one_authority_that_expired_spoils_no_other(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pem = authority.ca.read_bytes()

    assert len(check_authorities(pem + pem, now=now())) == 2
    with pytest.raises(CertificateRefusedError, match="expired"):
        check_authorities(pem, now=now() + 100 * DAY_S)


def _self_signed(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415  # for this certificate alone

    from cryptography import x509  # noqa: PLC0415  # as above
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415  # as above

    name = x509.Name([])
    today = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=1))
    )
    algorithm = SHA256() if isinstance(key, rsa.RSAPrivateKey) else None
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)
