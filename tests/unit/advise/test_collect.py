"""What is gathered of a spec file, a running system, its machine, and what is told as missing."""

import json
import os
import socket
import threading
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from headrace.advise import Need
from headrace.advise.audit import collect_host
from headrace.advise.audit.check import NamedFile, named_files
from headrace.advise.audit.collect import SystemLocation, collect_running, collect_spec_file
from headrace.advise.audit.collect_host import file_fact, named_file_fact
from headrace.advise.audit.facts import InForceFact, Listener, ReplicaFact, TextFact
from headrace.core import NotFoundError, PermissionDeniedError, UnavailableError
from headrace.core.names import is_loopback, is_loopback_url
from headrace.core.spec.parse import parse_spec
from tests.unit.advise.conftest import NOW
from tests.unit.advise.planting import made_certificate

HOME = "/srv/headrace"
STATUS: dict[str, Any] = {
    "pid": 100,
    "gateway": {"pid": 200},
    "addresses": {
        "http": "http://127.0.0.1:8000",
        "metrics": "http://127.0.0.1:8002/metrics",
        "admin": "http://127.0.0.1:8080",
    },
    "endpoints": [
        {"name": "a", "revisions": [{"model": "a:2", "replicas": [{"name": "a-2-1", "pid": 300}]}]}
    ],
}
SPEC = {"version": 1, "endpoints": [{"name": "a", "model": "a:2", "labels": {"y": ["no", "yes"]}}]}


class Answers:
    """A management API that says what it was told to; an error is raised."""

    def __init__(self, answers: Mapping[str, object]) -> None:
        self.answers = {
            "/api/v1/status": STATUS,
            "/api/v1/spec": {"generation": 1, "spec": SPEC},
            "/api/v1/models": {"models": [], "problems": []},
            "/api/v1/keys": NotFoundError("no such path"),
            "/api/v1/tokens": NotFoundError("no such path"),
        } | dict(answers)

    def get(self, path: str, **_: object) -> dict[str, Any]:
        answer = self.answers[path]
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, dict)
        return answer


ELSEWHERE = SystemLocation(url="https://gpu-box:8080")


def test_a_spec_file_alone_says_what_it_does_not_know(made: Path) -> None:
    facts = collect_spec_file(made / "headrace.yaml", now=NOW)

    assert set(facts.missing) == set(Need) - {Need.SPEC, Need.FILES}
    assert facts.listeners == (Listener(role="gateway", host="0.0.0.0", port=8443, tls=True),)  # noqa: S104  # compared
    assert facts.lines["endpoints[0].access"] > 1
    assert all(file.exists and not file.problem for file in facts.files.values())


def test_certificates_and_keys_are_read(made: Path) -> None:
    facts = collect_spec_file(made / "headrace.yaml", now=NOW)
    files = {named.location: facts.files[named.path] for named in named_files(facts.spec)}

    (certificate,) = files["gateway.tls.certificate_file"].certificates
    assert certificate.names == ("localhost", "inference.hardened.test")
    assert (certificate.key.kind, certificate.key.bits) == ("EC", 256)
    assert certificate.signature_hash == "sha256"
    assert certificate.is_self_signed is False
    assert certificate.not_after - NOW > timedelta(days=300)
    (key,) = files["gateway.tls.key_file"].keys
    assert key.fingerprint == certificate.key.fingerprint
    assert files["gateway.tls.key_file"].mode == 0o600
    assert files["auth.jwt[0].jwks_file"].keys[0].kind == "P-256"
    assert files["security.trusted_keys[0]"].keys[0].kind == "Ed25519"


@pytest.mark.parametrize(
    ("kind", "content", "problem"),
    [
        ("certificate", "no", "is not a valid PEM certificate"),
        ("key", "no", "is not a valid PEM private key"),
        ("key", "-----BEGIN ENCRYPTED PRIVATE KEY-----", "is encrypted, and its password"),
        ("trusted", "no", "is not a valid PEM public key"),
        ("jwks", "{", "is not a valid JSON Web Key Set"),
        ("jwks", '{"keys": [{"kty": "RSA", "n": "é"}]}', "is not a valid JSON Web Key Set"),
        ("ca", "x" * ((1 << 20) + 1), "larger than"),
    ],
)
def test_a_file_that_is_something_else_says_so(
    kind: str, content: str, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text(content)

    fact = named_file_fact(NamedFile(location="x", path=str(file), kind=kind))

    assert problem in fact.problem


def test_a_pipe_or_a_directory_is_no_certificate(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    facts = [
        named_file_fact(NamedFile(location="x", path=str(path), kind="ca"))
        for path in (tmp_path / "pipe", tmp_path)
    ]

    assert [fact.problem for fact in facts] == [
        "cannot be read: not a regular file",
        "cannot be read: not a regular file",
    ]


def test_who_gets_to_a_file_depends_on_the_directories_above(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    (folder / "file").write_text("")

    assert file_fact(folder / "file").is_reachable is False
    assert file_fact(Path("/etc/passwd")).is_reachable is True
    assert file_fact(folder / "gone").exists is False


def test_a_running_system_on_another_machine_is_audited_by_what_it_says() -> None:
    facts = collect_running(Answers({}), ELSEWHERE, now=NOW)

    assert [one.name for one in facts.spec.endpoints] == ["a"]
    assert facts.listeners[1:] == (
        Listener(role="management", host="gpu-box", port=8080, tls=True),
    )
    assert {
        need: why for need, why in facts.missing.items() if "another machine" in why
    }.keys() == {
        Need.FILES,
        Need.HOST,
        Need.SOFTWARE,
    }
    assert facts.missing[Need.KEYS] == "this control plane has no API keys"
    assert TextFact(where="endpoints[0].labels.y[1]", text="yes") in facts.texts
    assert TextFact(where="endpoints[0].model", text="model: a:2") in facts.texts


def test_keys_and_versions_are_taken_as_the_api_tells_them() -> None:
    at = NOW - timedelta(days=5)
    keys = [
        {"name": "a", "scopes": ["infer:a"], "created": at.timestamp(), "expires": None},
        {"id": "b", "scopes": [], "created": at.isoformat(), "last_used": None},
        {"name": "revoked", "scopes": [], "revoked": at.timestamp()},
        {"name": "over", "scopes": [], "expires": at.timestamp()},
    ]
    models = [
        {"name": "a", "version": "1", "runtime": "onnx", "signatures": []},
        {"name": "a", "version": "2", "runtime": "onnx", "signatures": [{"key": "x"}]},
        {"name": "b", "version": "1", "runtime": "python"},
    ]
    answers = Answers({"/api/v1/keys": {"keys": keys}, "/api/v1/models": {"models": models}})

    facts = collect_running(answers, ELSEWHERE, now=NOW)

    assert [one.name for one in facts.keys] == ["a", "b"]
    assert facts.keys[0].created == at
    assert [one.records_use for one in facts.keys] == [False, True]
    assert [(one.reference, one.signed, one.is_served) for one in facts.versions] == [
        ("a:1", False, False),
        ("a:2", True, True),
        ("b:1", None, False),
    ]
    assert Need.KEYS not in facts.missing


def test_what_the_api_does_not_answer_is_missing_and_the_rest_is_known() -> None:
    lost = UnavailableError("gone", retry_after_s=None)
    wrong = {"generation": 1, "spec": {"endpoints": [{"nam": "a"}]}}
    answers = Answers({"/api/v1/keys": lost, "/api/v1/models": lost, "/api/v1/spec": wrong})

    facts = collect_running(answers, ELSEWHERE, now=NOW)

    assert facts.missing[Need.KEYS] == "the API keys cannot be listed: gone"
    assert facts.missing[Need.VERSIONS] == "the registry does not respond: gone"
    assert "mistakes in the spec" in facts.missing[Need.SPEC]


def test_when_metrics_were_read_is_known_where_the_status_says_so() -> None:
    at = (NOW - timedelta(seconds=30)).timestamp()

    told = collect_running(
        Answers({"/api/v1/status": STATUS | {"metrics_read_at": at}}), ELSEWHERE, now=NOW
    )
    never = collect_running(
        Answers({"/api/v1/status": STATUS | {"metrics_read_at": None}}), ELSEWHERE, now=NOW
    )

    assert told.scraped_s_ago == pytest.approx(30, abs=0.01)
    assert never.scraped_s_ago is None
    assert Need.SCRAPES not in told.missing


def test_tokens_isolation_and_certificates_are_taken_as_they_are_told() -> None:
    tokens = [
        {"id": "a", "kind": "token", "owner": "ci", "state": "valid", "expires": None},
        {"id": "b", "kind": "token", "owner": "ci", "state": "revoked", "expires": None},
        {"id": "c", "kind": "session", "owner": "ann", "state": "valid", "expires": None},
        {"id": "d", "kind": "token", "owner": "admin", "state": "valid", "expires": None},
    ]
    replica = {"name": "a-2-1", "isolation": {"user": 0, "problems": ["has network"]}}
    endpoints = [{"name": "a", "revisions": [{"model": "a:2", "replicas": [replica]}]}]
    certificates = [{"name": "gateway", "file": "/x.pem", "problem": "is no pair"}]
    gateway = STATUS["gateway"] | {"certificates": certificates}
    status = STATUS | {"endpoints": endpoints, "gateway": gateway}

    facts = collect_running(
        Answers({"/api/v1/status": status, "/api/v1/tokens": {"tokens": tokens}}),
        ELSEWHERE,
        now=NOW,
    )
    without = collect_running(Answers({}), ELSEWHERE, now=NOW)

    assert [one.id for one in facts.tokens] == ["a"]
    assert facts.replicas == (ReplicaFact(name="a-2-1", not_isolated=("has network",)),)
    assert facts.in_force == (InForceFact(name="gateway", file="/x.pem", problem="is no pair"),)
    needs = {Need.TOKENS, Need.ISOLATION, Need.CERTIFICATES}
    assert needs & facts.missing.keys() == set()
    assert needs <= without.missing.keys()


def test_a_system_on_this_machine_is_seen_from_outside(tmp_path: Path) -> None:
    status = STATUS | {"pid": os.getpid(), "gateway": {"pid": None}}
    with (
        socket.create_server(("127.0.0.1", 0)) as admin,
        socket.create_server(("127.0.0.1", 0)) as metrics,
    ):
        addresses = {
            "admin": f"http://127.0.0.1:{admin.getsockname()[1]}",
            "metrics": f"http://127.0.0.1:{metrics.getsockname()[1]}/metrics",
        }
        place = SystemLocation(url=addresses["admin"], home=tmp_path)
        answers = Answers({"/api/v1/status": status | {"addresses": addresses}})

        facts = collect_running(answers, place, now=NOW)

    roles = {one.role: (one.host, one.tls) for one in facts.listeners}
    assert roles["management"] == roles["metrics"] == ("127.0.0.1", False)
    assert (facts.processes[0].name, facts.processes[0].uid) == ("control plane", os.getuid())
    assert facts.home.home.mode == tmp_path.stat().st_mode & 0o7777
    assert facts.home.state is None
    assert facts.home.log_level
    assert "python" in facts.software
    assert {Need.FILES, Need.HOST, Need.LISTENERS, Need.SOFTWARE} & facts.missing.keys() == set()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("api.localhost", True),
        ("0.0.0.0", False),  # noqa: S104  # compared
        ("::", False),
        ("10.0.0.1", False),
        ("example", False),
        ("", False),
    ],
)
def test_only_what_is_surely_this_machine_is_loopback(host: str, expected: bool) -> None:  # noqa: FBT001  # of a table
    assert is_loopback(host) is expected


def test_a_url_that_cannot_be_read_is_not_this_machine() -> None:
    assert not is_loopback_url("http://[::1")
    assert is_loopback_url("http://[::1]:80/x")


class Proc:
    """A `/proc` with one process in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "7" / "fd").mkdir(parents=True)
        (root / "7" / "net").mkdir()
        (root / "self").mkdir()
        self.write("7/status", "Name:\tpython\nUid:\t0\t1000\t1000\t1000\n")
        self.write(
            "7/limits", "Limit  Soft\nMax core file size        unlimited   unlimited bytes\n"
        )

    def write(self, name: str, text: str) -> None:
        (self.root / name).write_text(text)

    def words(self, name: str, *words: str) -> None:
        self.write(f"7/{name}", "".join(f"{word}\0" for word in words))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path / "proc")


def test_a_process_tells_its_user_and_its_core_limit(proc: Proc) -> None:
    fact = collect_host.process_fact("gateway", 7, proc=proc.root)
    proc.write("7/limits", "Max core file size        0   unlimited bytes\n")
    limited = collect_host.process_fact("gateway", 7, proc=proc.root)

    assert fact is not None
    assert limited is not None
    assert (fact.uid, fact.core_bytes, limited.core_bytes) == (1000, None, 0)
    assert collect_host.process_fact("gateway", 8, proc=proc.root) is None


def test_listening_addresses_are_read_as_the_kernel_writes_them(proc: Proc) -> None:
    head = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt uid timeout\n"
    )
    row = "   0: {} 00000000:0000 {} 00000000:00000000 00:00000000 00000000  1000  0 {} 1 0\n"
    proc.write(
        "7/net/tcp",
        head
        + row.format("00000000:1F40", "0A", 11)
        + row.format("0100007F:1F90", "0A", 12)
        + row.format("0100007F:0050", "01", 13)
        + row.format("0100007F:0051", "0A", 99)
        + "short\n",
    )
    proc.write("7/net/tcp6", head + row.format(f"{'0' * 24}01000000:1F42", "0A", 14))
    for number, inode in enumerate((11, 12, 13, 14)):
        (proc.root / "7" / "fd" / str(number)).symlink_to(f"socket:[{inode}]")
    (proc.root / "7" / "fd" / "9").symlink_to("/dev/null")

    found = collect_host.listeners_of(7, proc=proc.root)

    assert found == (("0.0.0.0", 8000), ("127.0.0.1", 8080), ("::1", 8002))  # noqa: S104  # compared
    assert collect_host.listeners_of(8, proc=proc.root) == ()


@pytest.mark.parametrize(
    ("point", "expected"), [("/srv", "nfs4"), ("/srv/my\\040home", "ext4"), ("/other", "tmpfs")]
)
def test_the_file_system_is_that_of_the_nearest_mount(
    point: str, expected: str, proc: Proc
) -> None:
    proc.write(
        "self/mountinfo",
        "1 0 0:1 / / rw - tmpfs tmpfs rw\n"
        "2 1 0:2 / /srv rw shared:1 - nfs4 server:/x rw\n"
        "3 2 0:3 / /srv/my\\040home rw - ext4 /dev/sda rw\n"
        "damaged\n",
    )
    path = Path(point.replace("\\040", " ")) / "state.db"

    assert collect_host.file_system_of(path, proc=proc.root) == expected


@pytest.mark.parametrize(
    ("arguments", "environ", "shown", "source"),
    [
        (
            ["--state-url", "postgresql://me:hunter2@db/x"],
            [],
            "postgresql://me:***@db/x",
            "the command line",
        ),
        (
            ["--state-url=postgresql://me@db/x?password=hunter2"],
            [],
            "postgresql://me@db/x?password=***",
            "the command line",
        ),
        (
            [],
            ["HEADRACE_STATE_URL=postgresql://me:hunter2@db/x"],
            "postgresql://me:***@db/x",
            "HEADRACE_STATE_URL",
        ),
    ],
)
def test_a_password_in_a_url_is_told_and_never_shown(
    arguments: list[str], environ: list[str], shown: str, source: str, proc: Proc
) -> None:
    proc.words("cmdline", "python", "-m", "headrace.control", *arguments)
    proc.words("environ", *environ)

    home = collect_host.home_facts(
        proc.root, pid=7, token=proc.root / "gone", sockets=None, proc=proc.root
    )

    assert home.state_url_has_password
    assert (home.state_url, home.state_url_source) == (shown, source)
    assert home.state is None
    assert "hunter2" not in repr(home)


@pytest.mark.parametrize(
    "url", ["postgresql://me:${PASSWORD}@db/x", "postgresql://me@db/x?password=${P}", "file:/u"]
)
def test_a_reference_in_the_place_of_a_password_is_none(url: str, proc: Proc) -> None:
    proc.words("environ", f"HEADRACE_STATE_URL={url}")

    home = collect_host.home_facts(
        proc.root, pid=7, token=proc.root / "gone", sockets=None, proc=proc.root
    )

    assert not home.state_url_has_password
    assert home.state is None


def test_settings_of_a_detached_control_plane_are_read_from_their_file(
    proc: Proc, tmp_path: Path
) -> None:
    database = tmp_path / "elsewhere.db"
    database.touch(mode=0o640)
    database.chmod(0o640)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"log_level": "DEBUG", "state_url": f"sqlite:///{database}"}))
    proc.words("cmdline", "python", "--settings", str(settings))

    home = collect_host.home_facts(
        tmp_path, pid=7, token=tmp_path / "t", sockets=tmp_path / "s", proc=proc.root
    )

    assert home.log_level == "DEBUG"
    assert home.state is not None
    assert (home.state.path, home.state.mode) == (str(database), 0o640)
    assert home.admin_token is None
    assert home.state_url_has_password is False


def test_settings_that_cannot_be_read_say_nothing(proc: Proc, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{")
    proc.words("cmdline", "python", "--settings", str(tmp_path / "settings.json"))

    home = collect_host.home_facts(
        tmp_path, pid=7, token=tmp_path / "t", sockets=None, proc=proc.root
    )

    assert home.log_level == "info"


def test_where_envoy_was_started_from_is_on_its_command_line(proc: Proc) -> None:
    proc.words("cmdline", "envoy", "--config-path", "/run/x/envoy.json")

    assert collect_host.envoy_files(7, proc=proc.root) == Path("/run/x")
    assert collect_host.envoy_files(8, proc=proc.root) is None


def test_an_envoy_that_does_not_answer_has_no_version(tmp_path: Path) -> None:
    assert collect_host.envoy_version(tmp_path / "admin.sock") == ""


@pytest.mark.parametrize(
    ("key", "kind", "bits"),
    [
        (rsa.generate_private_key(65537, 1024), "RSA", 1024),  # noqa: S505  # to be found
        (ed25519.Ed25519PrivateKey.generate(), "Ed25519", 0),
        (ed448.Ed448PrivateKey.generate(), "Ed448", 0),
        (x25519.X25519PrivateKey.generate(), "X25519", 0),
    ],
    ids=["RSA", "Ed25519", "Ed448", "X25519"],
)
def test_keys_of_all_kinds_tell_their_size(
    key: rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | x25519.X25519PrivateKey,
    kind: str,
    bits: int,
    tmp_path: Path,
) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    (found,) = named_file_fact(NamedFile(location="x", path=str(file), kind="key")).keys

    assert (found.kind, found.bits) == (kind, bits)


def test_a_certificate_that_is_its_own_authority_is_seen(made: Path, tmp_path: Path) -> None:
    file = tmp_path / "own.pem"
    file.write_bytes(made_certificate(made, name="own", own=True))

    (fact,) = named_file_fact(NamedFile(location="x", path=str(file), kind="ca")).certificates

    assert fact.is_self_signed
    assert fact.names == ("own",)


def test_an_envoy_says_its_version_over_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    body = b'{"version": "0123abc/1.40.0/Clean/RELEASE/BoringSSL", "state": "LIVE"}'
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body)
                connection.sendall(head + body)

        thread = threading.Thread(target=answer)
        thread.start()
        version = collect_host.envoy_version(path)
        thread.join()

    assert version == "1.40.0"


def test_what_cannot_be_seen_of_a_process_is_told_as_missing(tmp_path: Path) -> None:
    gone = STATUS | {"pid": 2**22 + 1, "gateway": {"pid": None}}
    place = SystemLocation(url="http://127.0.0.1:8080", home=tmp_path)

    facts = collect_running(Answers({"/api/v1/status": gone}), place, now=NOW, advisories=())

    assert "cannot list" in facts.missing[Need.LISTENERS]
    assert "another Python" in facts.missing[Need.SOFTWARE]
    assert (
        facts.missing[Need.ADVISORIES] == "the system runs on another machine; run the audit there"
    )
    assert facts.processes == ()


def test_tokens_that_only_admins_see_are_missing() -> None:
    refused = PermissionDeniedError("only for admins")

    facts = collect_running(Answers({"/api/v1/tokens": refused}), ELSEWHERE, now=NOW)

    assert facts.missing[Need.TOKENS] == "the tokens cannot be listed: only for admins"


def test_files_that_a_spec_names_are_listed_with_their_places() -> None:
    spec = parse_spec(
        {
            "endpoints": [
                {"name": "a", "model": "/m/a.onnx"},
                {
                    "name": "b",
                    "versions": [
                        {"model": "/m/b", "weight": 50},
                        {
                            "upstream": {"url": "https://x.test", "tls": {"ca_file": "/ca"}},
                            "version": "9",
                            "weight": 50,
                        },
                    ],
                },
            ]
        }
    )

    found = {named.location: (named.path, named.kind) for named in named_files(spec)}

    assert found == {
        "endpoints[0].model": ("/m/a.onnx", "model"),
        "endpoints[1].versions[0].model": ("/m/b", "model"),
        "endpoints[1].versions[1].upstream.tls.ca_file": ("/ca", "ca"),
    }


def test_moments_in_any_form_are_compared_in_utc() -> None:
    keys = [
        {"name": "naive", "created": "2026-01-02T03:04:05"},
        {"name": "zoned", "created": "2026-01-02T04:04:05+01:00"},
        {"name": "odd", "created": "yesterday"},
        {"name": "late", "created": 1e300},
    ]

    facts = collect_running(Answers({"/api/v1/keys": {"keys": keys}}), ELSEWHERE, now=NOW)

    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert [one.created for one in facts.keys] == [moment, moment, None, None]
    assert replace(facts.keys[0], name="x").scopes == ()
