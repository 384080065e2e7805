"""`headrace certs`: creation of test certificates, and display of certificates."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from headrace.cli.base.options import CommandGroup, Json, argument, option
from headrace.cli.base.output import FAILED, columns, say, write, write_json
from headrace.core import (
    FailedPreconditionError,
    InvalidArgumentError,
    SystemClock,
    UnavailableError,
)
from headrace.core.files import make_private_dir, write_atomic

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_SKEW: Final = timedelta(minutes=5)
_HOST: Final = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_-]{1,63})*\.?")
_LONGEST_NAME: Final = 64
"""Maximum length of a common name (X.520)."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, both PEM."""

    certificate: bytes
    key: bytes


def new_authority(*, now: float, days: float, name: str = "Headrace local authority") -> Pair:
    """Return a new certificate authority, which may sign servers and clients only.

    Args:
        now: Seconds since 1970.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _name(name)
    builder = _builder(subject, subject, key, now=now, days=days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(signs_others=True), critical=True)
    return _signed(builder, key, key)


def server_certificate(authority: Pair, names: Iterable[str], *, now: float, days: float) -> Pair:
    """Return the certificate of a server with these `names`: host names and addresses.

    Raises:
        InvalidArgumentError: A name is not valid.
    """
    names = tuple(dict.fromkeys(names))
    others: list[x509.GeneralName] = []
    for name in names:
        try:
            others.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if _HOST.fullmatch(name) is None:
                msg = f"'{name}' is neither a host name nor an address"
                raise InvalidArgumentError(msg) from None
            others.append(x509.DNSName(name))
    return _leaf(authority, names[0], others, server=True, now=now, days=days)


def client_certificate(authority: Pair, name: str, *, now: float, days: float) -> Pair:
    """Return the certificate of client `name`: a word, a host name, or a URI (SPIFFE id).

    Raises:
        InvalidArgumentError: The name is not valid.
    """
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
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    signer = x509.load_pem_x509_certificate(authority.certificate)
    signing_key = load_pem_private_key(authority.key, password=None)
    if not isinstance(signing_key, ec.EllipticCurvePrivateKey):
        raise InvalidArgumentError(
            "the existing authority's key has another type than the keys that this command creates"
        )
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

    valid_from = datetime.fromtimestamp(now, UTC)
    ends = valid_from + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # The clock of another host may be behind.
        .not_valid_before(min(valid_from, ends) - _SKEW)
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

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:_LONGEST_NAME])])


app = CommandGroup(help="Certificates: create some to try TLS, show any.")
_AUTHORITY_DAYS: Final = 3650.0
_DAY_S: Final = 86_400.0
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_CONNECT_TIMEOUT_S: Final = 5.0


@app.command()
def dev(
    *,
    out: Annotated[Path, option("Output directory.", file_okay=False)] = Path("certs"),
    hosts: Annotated[
        list[str] | None,
        option(
            "Host name or address of the server, in addition to localhost and this machine's "
            "name; may be repeated.",
            "--host",
            metavar="NAME",
        ),
    ] = None,
    clients: Annotated[
        list[str] | None,
        option(
            "Create a client certificate for this name: a word, a host name or a URI; may be "
            "repeated.",
            "--client",
            metavar="NAME",
        ),
    ] = None,
    days: Annotated[float, option("Validity in days.", min=0.01, max=3650)] = 365.0,
    force: Annotated[
        bool,
        option(
            "Replace existing certificates; the authority stays, so clients that trust it keep "
            "working.",
            "--force",
        ),
    ] = False,
) -> None:
    """Create a local certificate authority, a certificate for the gateway, and client certificates.

    For tests and development only: anyone who can read ca-key.pem can impersonate any server to
    clients that trust this authority.

    For example:

        headrace certs dev

        headrace certs dev --host models.lan --client fraud-app --client spiffe://lab/batch
    """
    now = SystemClock().now()
    make_private_dir(out)
    authority = _authority(out, now)
    names = (*_LOCAL, socket.gethostname(), *(hosts or ()))
    rows = []
    for file, name in [("server", ""), *((_file_name(client), client) for client in clients or ())]:
        path = out / f"{file}.pem"
        if path.exists() and not force:
            rows.append((str(path), "exists, unchanged; --force replaces it"))
        elif name:
            pair = client_certificate(authority, name, now=now, days=days)
            _write(path, out / f"{file}-key.pem", pair)
            rows.append((str(path), f"for the client {name}, {days:g} days"))
        else:
            pair = server_certificate(authority, names, now=now, days=days)
            _write(path, out / f"{file}-key.pem", pair)
            rows.append((str(path), f"for {', '.join(dict.fromkeys(names))}, {days:g} days"))
    for line in columns(
        [(str(out / "ca.pem"), "the certificate authority; clients trust it"), *rows]
    ):
        say(line)
    for line in _next_steps(out, [_file_name(client) for client in clients or ()]):
        say(line)


@app.command()
def show(
    source: Annotated[
        str, argument("A PEM file, or a server as HOST:PORT.", metavar="FILE|HOST:PORT")
    ],
    *,
    json: Json = False,
) -> None:
    """Show subject, issuer and expiry of certificates; exit status 1 if a certificate has expired.

    Certificates of a server are displayed without verification.

    For example:

        headrace certs show certs/server.pem

        headrace certs show 127.0.0.1:8000 --json
    """
    from headrace.gateway.pem import read_certificates

    now = SystemClock().now()
    certificates = read_certificates(_pem_of(source))
    documents = [
        {
            "subject": certificate.subject,
            "issuer": certificate.issuer,
            "names": list(certificate.names),
            "not_before": _time(certificate.not_before),
            "not_after": _time(certificate.not_after),
            "days_left": round((certificate.not_after - now) / _DAY_S, 2),
            "key": certificate.key,
            "is_authority": certificate.is_authority,
            "sha256": certificate.fingerprint,
        }
        for certificate in certificates
    ]
    if json:
        write_json(documents)
    else:
        write("\n\n".join("\n".join(columns(_rows(document))) for document in documents))
    if any(certificate.not_after < now for certificate in certificates):
        raise typer.Exit(FAILED)


def _authority(out: Path, now: float) -> "Pair":
    certificate, key = out / "ca.pem", out / "ca-key.pem"
    if certificate.exists() != key.exists():
        there, removed = (certificate, key) if certificate.exists() else (key, certificate)
        msg = f"{there} is there and {removed} is not: put it back, or choose another --out"
        raise FailedPreconditionError(msg)
    if certificate.exists():
        return Pair(certificate.read_bytes(), key.read_bytes())
    authority = new_authority(now=now, days=_AUTHORITY_DAYS)
    _write(certificate, key, authority)
    return authority


def _write(certificate: Path, key: Path, pair: "Pair") -> None:
    """Write the key first: a watching server reads both when the certificate changes."""
    write_atomic(key, pair.key, mode=0o600)
    write_atomic(certificate, pair.certificate, mode=0o644)


def _file_name(client: str) -> str:
    """Return the name of a client's files.

    Raises:
        InvalidArgumentError: The names would collide with other files.
    """
    name = re.sub(r"[^A-Za-z0-9.-]+", "-", client.rpartition("://")[2]).strip("-.") or "client"
    if name in {"ca", "server"} or name.endswith("-key"):
        raise InvalidArgumentError(f"a client cannot be called '{client}': its files would clash")
    return name


def _next_steps(out: Path, clients: list[str]) -> list[str]:
    location = out.absolute()
    shown = f" --cert {out}/{clients[0]}.pem --key {out}/{clients[0]}-key.pem" if clients else ""
    lines = [
        "",
        "in headrace.yaml:",
        "  gateway:",
        "    tls:",
        f"      certificate_file: {location}/server.pem",
        f"      key_file: {location}/server-key.pem",
    ]
    if clients:
        lines.append(f"      client_ca_file: {location}/ca.pem")
    flags = f"--tls-cert {out}/server.pem --tls-key {out}/server-key.pem"
    flags += f" --client-ca {out}/ca.pem" if clients else ""
    return [
        *lines,
        f"or: headrace up model.onnx {flags}",
        "",
        "then:",
        f"  curl --cacert {out}/ca.pem{shown} https://localhost:8000/v2/health/ready",
    ]


def _pem_of(source: str) -> bytes:
    """Return a file's bytes, or a server's certificate.

    Raises:
        UnavailableError: The server does not answer, or speaks no TLS.
    """
    host, _, port = source.rpartition(":")
    if Path(source).is_file() or not (host and port.isdigit()):
        return Path(source).read_bytes()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only displayed; nothing is sent
    name = host.strip("[]")
    try:
        with (
            socket.create_connection((name, int(port)), timeout=_CONNECT_TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=name) as secure,
        ):
            der = secure.getpeercert(binary_form=True) or b""
    except OSError as error:
        msg = f"no certificate from {source}: {error}"
        raise UnavailableError(msg, retry_after_s=None) from error
    return ssl.DER_cert_to_PEM_cert(der).encode()


def _rows(document: dict[str, Any]) -> list[tuple[str, str]]:
    days = document["days_left"]
    left = f"{days:.1f} days left" if days >= 0 else f"expired {-days:.1f} days ago"
    issuer = document["issuer"]
    return [
        ("subject", document["subject"] or "-"),
        ("names", ", ".join(document["names"]) or "-"),
        ("signed by", "itself" if issuer == document["subject"] else issuer),
        ("valid", f"{document['not_before']} to {document['not_after']} ({left})"),
        ("key", f"{document['key']}{', an authority' if document['is_authority'] else ''}"),
        ("SHA-256", document["sha256"]),
    ]


def _time(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%dT%H:%M:%SZ}"
