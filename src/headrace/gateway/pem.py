"""Checks of PEM files of a server or of trusted CAs, before Envoy reads them."""

# ruff: noqa: PLC0415  # cryptography takes a while to load, and most gateways do without

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from headrace.core import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.types import (
        CertificatePublicKeyTypes,
        PrivateKeyTypes,
    )

_SMALLEST_RSA_BITS: Final = 2048
_CURVES: Final = frozenset({"secp256r1", "secp384r1", "secp521r1"})


class CertificateRefusedError(FailedPreconditionError):
    """A certificate, key or authority is not usable; the message contains the reason.

    Messages contain no file content and no parser messages.
    """


class OutOfDateError(CertificateRefusedError):
    """The certificate is expired, or not valid yet."""


class KeyRefusedError(CertificateRefusedError):
    """The file of the private key cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """Fields of one X.509 certificate."""

    subject: str
    """Subject, RFC 4514."""
    issuer: str
    """Issuer, RFC 4514."""
    names: tuple[str, ...]
    """Subject alternative names, such as `localhost`, `127.0.0.1` or `spiffe://…`."""
    not_before: float
    """Start of validity, seconds since 1970."""
    not_after: float
    """End of validity, seconds since 1970."""
    key: str
    """Type and size of the public key."""
    fingerprint: str
    """SHA-256 of the certificate, in hex."""
    is_authority: bool
    """Whether it may sign other certificates."""


def read_certificates(pem: bytes) -> tuple[Certificate, ...]:
    """Return the fields of the certificates in `pem`, in order.

    Raises:
        CertificateRefusedError: There is no certificate, or one is damaged.
    """
    with _refusing():
        return tuple(_described(certificate) for certificate in _parse(pem))


def certificates_alone(pem: bytes) -> bytes:
    """Return the certificates in `pem` without other content, such as comments and keys.

    Raises:
        CertificateRefusedError: There is no certificate.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    with _refusing():
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in _parse(pem))


def first_certificate(pem: bytes) -> bytes:
    """Return the first certificate in `pem`; clients that trust it trust no other for it.

    Raises:
        CertificateRefusedError: There is no certificate.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    with _refusing():
        return _parse(pem)[0].public_bytes(Encoding.PEM)


def check_pair(chain: bytes, key: bytes, *, now: float, server: bool = True) -> Certificate:
    """Return the first certificate of `chain`, if it can be used together with `key`.

    Args:
        now: Seconds since 1970; what is out of date then is refused.
        server: Whether a server shows it; else a client does.

    Raises:
        CertificateRefusedError: The pair cannot be used.
    """
    with _refusing():
        certificates = _parse(chain)
        leaf = certificates[0]
        if not _same_key(_parse_key(key), leaf.public_key()):
            raise KeyRefusedError("the key does not match the certificate")
        _check_strength(leaf.public_key())
        _check_usage(leaf, server=server)
        for index, certificate in enumerate(certificates):
            _check_dates(
                certificate, now, "the certificate" if index == 0 else f"certificate {index + 1}"
            )
        _check_order(certificates)
        return _described(leaf)


def check_authorities(pem: bytes, *, now: float) -> tuple[Certificate, ...]:
    """Return the authorities in `pem`, if they can verify certificates.

    One that is out of date is no reason to refuse the others: bundles hold such.

    Raises:
        CertificateRefusedError: No authority can be used.
    """
    certificates = read_certificates(pem)
    if all(certificate.not_after < now for certificate in certificates):
        raise OutOfDateError(
            f"expired {_day(max(certificate.not_after for certificate in certificates))}"
        )
    return certificates


@contextmanager
def _refusing() -> Iterator[None]:
    """Convert any exception from a damaged or unusual certificate into a refusal."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509 import (
        DuplicateExtension,
        InvalidVersion,
        UnsupportedGeneralNameType,
    )

    expected_errors = (ValueError, TypeError, UnsupportedAlgorithm)
    try:
        yield
    except (
        *expected_errors,
        DuplicateExtension,
        InvalidVersion,
        UnsupportedGeneralNameType,
    ) as error:
        raise CertificateRefusedError("cannot be parsed") from error


def _parse(pem: bytes) -> "Sequence[x509.Certificate]":
    from cryptography import x509

    try:
        certificates = x509.load_pem_x509_certificates(pem)
    except ValueError:
        if b"PRIVATE KEY" in pem and b"BEGIN CERTIFICATE" not in pem:
            raise CertificateRefusedError("contains a key but no certificate") from None
        raise CertificateRefusedError("contains no PEM certificate") from None
    return certificates


def _parse_key(pem: bytes) -> "PrivateKeyTypes":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, password=None)
    except TypeError:
        msg = "the key is encrypted with a passphrase, which is not supported"
        raise KeyRefusedError(msg) from None
    except (ValueError, UnsupportedAlgorithm):
        raise KeyRefusedError("the key file contains no PEM private key") from None


def _same_key(private: "PrivateKeyTypes", public: "CertificatePublicKeyTypes") -> bool:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return private.public_key().public_bytes(*form) == public.public_bytes(*form)


def _check_strength(key: "CertificatePublicKeyTypes") -> None:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey):
        if key.key_size < _SMALLEST_RSA_BITS:
            msg = f"its RSA key has {key.key_size} bits; at least {_SMALLEST_RSA_BITS} are safe"
            raise CertificateRefusedError(msg)
    elif not (isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES):
        msg = f"its key is {_key_name(key)}; RSA and ECDSA (P-256, P-384, P-521) are supported"
        raise CertificateRefusedError(msg)


def _check_usage(leaf: "x509.Certificate", *, server: bool) -> None:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    needed = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    anything = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
    try:
        usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return
    if needed not in usages and anything not in usages:
        kind = "servers" if server else "clients"
        raise CertificateRefusedError(f"its extended key usage does not include {kind}")


def _check_dates(certificate: "x509.Certificate", now: float, description: str) -> None:
    starts = certificate.not_valid_before_utc.timestamp()
    ends = certificate.not_valid_after_utc.timestamp()
    if now < starts:
        raise OutOfDateError(f"{description} is not valid before {_day(starts)}")
    if now > ends:
        raise OutOfDateError(f"{description} expired {_day(ends)}")


def _check_order(chain: "Sequence[x509.Certificate]") -> None:
    from cryptography.exceptions import InvalidSignature

    for index, (certificate, signer) in enumerate(pairwise(chain), start=1):
        try:
            certificate.verify_directly_issued_by(signer)
        except (ValueError, TypeError, InvalidSignature):
            msg = (
                f"certificate {index} of the chain is not signed by the next one: order the chain "
                "from the server's certificate to its issuers"
            )
            raise CertificateRefusedError(msg) from None


def _described(certificate: "x509.Certificate") -> Certificate:
    from cryptography.hazmat.primitives.hashes import SHA256

    return Certificate(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=_names(certificate),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        key=_key_name(certificate.public_key()),
        fingerprint=certificate.fingerprint(SHA256()).hex(),
        is_authority=_is_authority(certificate),
    )


def _names(certificate: "x509.Certificate") -> tuple[str, ...]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _is_authority(certificate: "x509.Certificate") -> bool:
    from cryptography import x509

    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _key_name(key: "CertificatePublicKeyTypes") -> str:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    return type(key).__name__.removesuffix("PublicKey")


def _day(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M} UTC"
