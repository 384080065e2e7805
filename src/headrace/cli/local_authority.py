"""An authority of one's own, for a laptop or a test system, and what it signs."""

# ruff: noqa: PLC0415  # cryptography takes a while to load

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from headrace.core import InvalidArgumentError

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_SKEW: Final = timedelta(minutes=5)
_HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")
_LONGEST_NAME: Final = 64
"""Of a common name (X.520)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def new_authority(*, now: float, days: float, name: str = "Headrace local authority") -> Pair:
    """An authority that nobody trusts yet; it signs for servers and clients, for no authorities.

    Args:
        now: Seconds since 1970.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key, now=now, days=days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_others=True), critical=True)
    return _signed(builder, key, key)


def server_certificate(authority: Pair, names: Iterable[str], *, now: float, days: float) -> Pair:
    """What a server shows that is reached by `names`: host names and addresses.

    Raises:
        InvalidArgumentError: One is neither.
    """
    names = tuple(dict.fromkeys(names))
    return _leaf(authority, names[0], map(_server_name, names), server=True, now=now, days=days)


def client_certificate(authority: Pair, name: str, *, now: float, days: float) -> Pair:
    """What a client called `name` shows: a word, a host name, or a URI such as a SPIFFE id.

    Raises:
        InvalidArgumentError: It is none of these.
    """
    from cryptography import x509

    if "://" in name:
        others: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name)]
        name = name.rpartition("/")[2] or name
    elif _HOST.fullmatch(name):
        others = [x509.DNSName(name)]
    else:
        raise InvalidArgumentError(
            f"'{name}' is no name for a client: use letters, digits, . and -"
        )
    return _leaf(authority, name, others, server=False, now=now, days=days)


def _leaf(
    authority: Pair,
    name: str,
    names: "Iterable[x509.GeneralName]",
    *,
    server: bool,
    now: float,
    days: float,
) -> Pair:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID

    signer = x509.load_pem_x509_certificate(authority.certificate)
    signing_key = load_pem_private_key(authority.key, password=None)
    if not isinstance(signing_key, ec.EllipticCurvePrivateKey):
        raise InvalidArgumentError("the authority's key is of another kind than this command makes")
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = _builder(_name(name), signer.subject, key, now=now, days=days)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_key_usage(signs_others=False), True),
        (x509.ExtendedKeyUsage([usage]), False),
        (x509.SubjectAlternativeName(list(names)), False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return _signed(builder, key, signing_key)


def _builder(
    subject: "x509.Name",
    issuer: "x509.Name",
    key: "EllipticCurvePrivateKey",
    *,
    now: float,
    days: float,
) -> "x509.CertificateBuilder":
    from cryptography import x509

    at = datetime.fromtimestamp(now, UTC)
    ends = at + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # A clock of another machine may be behind.
        .not_valid_before(min(at, ends) - _SKEW)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _signed(
    builder: "x509.CertificateBuilder",
    key: "EllipticCurvePrivateKey",
    signing_key: "EllipticCurvePrivateKey",
) -> Pair:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    certificate = builder.sign(signing_key, SHA256())
    return Pair(
        certificate.public_bytes(Encoding.PEM),
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
    )


def _key_usage(*, signs_others: bool) -> "x509.KeyUsage":
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_others,
        key_cert_sign=signs_others,
        crl_sign=signs_others,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> "x509.Name":
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_LONGEST_NAME])])


def _server_name(text: str) -> "x509.GeneralName":
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        if _HOST.fullmatch(text) is None:
            raise InvalidArgumentError(f"'{text}' is neither a host name nor an address") from None
        return x509.DNSName(text)
