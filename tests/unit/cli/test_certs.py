"""A local authority that clients check as strictly as any other."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from tests.certificates import Authority, now
from tests.unit.cli.conftest import Command


def _read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_an_authority_a_server_and_clients_are_made(headrace: Command) -> None:
    outcome = headrace(
        *("certs", "dev", "--host", "models.lan", "--client", "app", "--client", "spiffe://lab/b")
    )
    folder = Path("certs")
    modes = {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}

    assert outcome.status == 0
    assert outcome.out == ""
    assert {name for name, mode in modes.items() if mode == 0o600} == {
        *("ca-key.pem", "server-key.pem", "app-key.pem", "lab-b-key.pem")
    }
    assert {name for name, mode in modes.items() if mode == 0o644} == {
        *("ca.pem", "server.pem", "app.pem", "lab-b.pem")
    }
    assert "certificate_file: " in outcome.err
    assert "curl --cacert certs/ca.pem --cert certs/app.pem" in outcome.err


def test_each_certificate_may_do_its_own_thing_and_no_other(headrace: Command) -> None:
    headrace("certs", "dev", "--host", "models.lan", "--client", "app")
    ca, server, app = (_read(Path("certs") / f"{name}.pem") for name in ("ca", "server", "app"))
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value

    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert ca.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    for leaf, usage in (
        (server, ExtendedKeyUsageOID.SERVER_AUTH),
        (app, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        leaf.verify_directly_issued_by(ca)
        constraints = leaf.extensions.get_extension_for_class(x509.BasicConstraints)
        key_usage = leaf.extensions.get_extension_for_class(x509.KeyUsage)
        assert (constraints.critical, constraints.value.ca) == (True, False)
        assert (key_usage.critical, key_usage.value.key_cert_sign) == (True, False)
        found = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert list(found) == [usage]
        signer = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        assert signer.key_identifier
    assert {"localhost", "models.lan"} <= set(names.get_values_for_type(x509.DNSName))
    assert {str(ip) for ip in names.get_values_for_type(x509.IPAddress)} == {"127.0.0.1", "::1"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="checks with openssl")
def test_openssl_finds_nothing_to_complain_of(headrace: Command) -> None:
    headrace("certs", "dev", "--client", "app")
    for name, purpose in (("server", "sslserver"), ("app", "sslclient")):
        command = ("openssl", "verify", "-x509_strict", "-purpose", purpose)
        done = subprocess.run(  # noqa: S603  # ours
            [*command, "-CAfile", "certs/ca.pem", f"certs/{name}.pem"],
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout


def test_nothing_is_replaced_unless_it_is_said_and_the_authority_never(headrace: Command) -> None:
    headrace("certs", "dev", "--client", "app")
    folder = Path("certs")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = headrace("certs", "dev", "--client", "app", "--client", "new")
    kept = {name: (folder / name).read_bytes() for name in before}
    forced = headrace("certs", "dev", "--force")
    after = {name: (folder / name).read_bytes() for name in before}

    assert kept == before
    assert "exists, unchanged" in again.err
    assert (folder / "new.pem").exists()
    assert "exists, unchanged" not in forced.err
    assert {name for name in before if after[name] != before[name]} == {
        "server.pem",
        "server-key.pem",
    }


@pytest.mark.parametrize("client", ["ca", "server", "x-key", "spiffe://server"])
def test_a_client_takes_nobodys_files(headrace: Command, client: str) -> None:
    outcome = headrace("certs", "dev", "--client", client, "--force")

    assert outcome.status == 1
    assert "its files would clash" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--host", "a b"), "neither a host name"), (("--client", "a b"), "no name for a client")],
)
def test_a_name_that_is_none_is_refused(
    headrace: Command, arguments: tuple[str, str], said: str
) -> None:
    outcome = headrace("certs", "dev", *arguments)

    assert outcome.status == 1
    assert said in outcome.err


def test_half_an_authority_is_not_made_whole(headrace: Command) -> None:
    headrace("certs", "dev")
    Path("certs/ca-key.pem").unlink()

    outcome = headrace("certs", "dev", "--force")

    assert outcome.status == 1
    assert "put it back" in outcome.err


def test_a_certificate_is_shown_for_people_and_for_programs(headrace: Command) -> None:
    headrace("certs", "dev", "--days", "7")
    text = headrace("certs", "show", "certs/server.pem").out
    (one,) = json.loads(headrace("certs", "show", "certs/server.pem", "--json").out)

    assert "localhost, 127.0.0.1" in text
    assert "7.0 days left" in text
    assert one["days_left"] == pytest.approx(7, abs=0.1)
    assert one["issuer"] == "CN=Headrace local authority"
    assert one["key"] == "ECDSA secp256r1"


def test_one_that_expired_is_exit_status_1(headrace: Command, tmp_path: Path) -> None:
    old = Authority(tmp_path / "old").server("s", at=now() - 9e5, days=1)

    outcome = headrace("certs", "show", str(old.certificate))

    assert outcome.status == 1
    assert "expired" in outcome.out


@pytest.mark.parametrize(
    ("source", "status", "said"),
    [
        ("none.pem", 1, "No such file"),
        ("127.0.0.1:1", 3, "no certificate from 127.0.0.1:1"),
    ],
)
def test_what_is_not_there_is_not_shown(
    headrace: Command, source: str, status: int, said: str
) -> None:
    outcome = headrace("certs", "show", source)

    assert outcome.status == status
    assert said in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--tls-cert", "c.pem"), "needs --tls-key"),
        (("--tls-key", "k.pem"), "needs --tls-cert"),
        (("--admin-tls-key", "k.pem"), "needs --admin-tls-cert"),
        (("--client-ca", "ca.pem"), "needs --tls-cert and --tls-key"),
        (("--require-client-cert",), "needs --tls-cert and --tls-key"),
        (("--tls-cert", "c", "--tls-key", "k", "--require-client-cert"), "needs --client-ca"),
    ],
)
def test_flags_that_need_each_other_say_so(
    headrace: Command, model: Path, arguments: tuple[str, ...], said: str
) -> None:
    outcome = headrace("up", model, *arguments)

    assert outcome.status == 2
    assert said in outcome.err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--key", "@none"), 2, "no file 'none'"),
        (("--cert", "c.pem"), 2, "go together"),
        (("--key", "hr_secret_value"), 1, "unencrypted"),
    ],
)
def test_infer_says_what_is_wrong_with_credentials_and_never_the_secret(
    headrace: Command, arguments: tuple[str, ...], status: int, said: str
) -> None:
    outcome = headrace("infer", "m", "--url", "http://models.example", *arguments)

    assert outcome.status == status
    assert said in outcome.err
    assert "secret_value" not in outcome.err
