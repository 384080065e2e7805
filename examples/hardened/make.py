"""Make the files that `headrace.yaml` names: certificates, an identity provider's keys, a signer.

    python make.py [OUT_DIR]

Writes OUT_DIR/pki (beside the script if it is not named). Every private key gets mode 0600. They
are for trying it out: the authority's key lies beside what it signs, which no real one would do.
"""

import base64
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
LIFETIME = timedelta(days=365)
SERVER_NAMES = ("localhost", "inference.hardened.test")
CLIENT_NAMES = ("batch.scoring.hardened.test",)


def main(out: Path) -> None:
    """Write every file, each with a key of its own."""
    pki = out / "pki"
    pki.mkdir(parents=True, exist_ok=True, mode=0o700)
    authority = ec.generate_private_key(ec.SECP256R1())
    ca = authority_certificate(authority)
    write_key(pki / "ca.key", authority)
    write_public(pki / "ca.pem", ca.public_bytes(Encoding.PEM))
    for file, names, usage in (
        ("server", SERVER_NAMES, ExtendedKeyUsageOID.SERVER_AUTH),
        ("client", CLIENT_NAMES, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = certify(key, names, usage, ca=ca, authority=authority)
        write_key(pki / f"{file}.key", key)
        write_public(pki / f"{file}.pem", certificate.public_bytes(Encoding.PEM))
    issuer = ec.generate_private_key(ec.SECP256R1())
    write_key(pki / "issuer.key", issuer)
    write_public(pki / "issuer.jwks.json", json.dumps(key_set(issuer), indent=2).encode())
    signer = ed25519.Ed25519PrivateKey.generate()
    write_key(pki / "signer.key", signer)
    public = signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_public(pki / "signer.pub.pem", public)
    print(f"wrote {pki}")


def authority_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """A certificate authority of one's own."""
    name = named("Hardened example authority")
    return (
        begun(name, name, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )


def certify(
    key: ec.EllipticCurvePrivateKey,
    names: tuple[str, ...],
    usage: x509.ObjectIdentifier,
    *,
    ca: x509.Certificate,
    authority: ec.EllipticCurvePrivateKey,
) -> x509.Certificate:
    """A certificate for hosts of these names, signed by the authority."""
    hosts = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
    return (
        begun(named(names[-1]), ca.subject, key)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(hosts, critical=False)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .sign(authority, hashes.SHA256())
    )


def begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    """What all certificates have; a minute back, for clocks that are late."""
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=1))
        .not_valid_after(now + LIFETIME)
    )


def named(common_name: str) -> x509.Name:
    """A subject."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def key_set(key: ec.EllipticCurvePrivateKey) -> dict[str, list[dict[str, str]]]:
    """The public half as a provider publishes it (RFC 7517)."""
    numbers = key.public_key().public_numbers()
    place = {"x": coordinate(numbers.x), "y": coordinate(numbers.y)}
    return {"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "example-1", **place}]}


def coordinate(number: int) -> str:
    """A coordinate of P-256 as JSON has it."""
    return base64.urlsafe_b64encode(number.to_bytes(32, "big")).rstrip(b"=").decode()


def write_key(path: Path, key: Key) -> None:
    """Write a private key that its owner alone can read, from the first byte on."""
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(data)


def write_public(path: Path, data: bytes) -> None:
    """Write what everybody may read and its owner alone may change."""
    path.write_bytes(data)
    path.chmod(0o644)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
