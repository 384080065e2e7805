"""The machine: addresses, files of the home, processes."""

from collections.abc import Iterator
from typing import Final

from headrace.advise.check import Check, Hit, exposed, mode_hit, mode_text, shown
from headrace.advise.facts import Facts, FileFact, Need, Severity

_ANY: Final = 7
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "smb2", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"),
    }
)


def _plain_management(facts: Facts) -> Iterator[Hit]:
    plain = tuple(one for one in exposed(facts, "management") if not one.tls)
    if plain:
        yield Hit(where="management API", seen=f"it listens on {shown(plain)} without TLS")


def _management_beyond(facts: Facts) -> Iterator[Hit]:
    secure = tuple(one for one in exposed(facts, "management") if one.tls)
    if secure:
        yield Hit(where="management API", seen=f"it listens on {shown(secure)}")


def _metrics_beyond(facts: Facts) -> Iterator[Hit]:
    beyond = exposed(facts, "metrics")
    if beyond:
        yield Hit(where="metrics", seen=f"they are read at {shown(beyond)}")


def _exposed_file(file: FileFact | None, *, mode: str) -> Iterator[Hit]:
    if file is not None and file.opens(_ANY):
        yield mode_hit(file, where=file.path, fix=f"chmod {mode} {file.path}")


def _open_sockets(facts: Facts) -> Iterator[Hit]:
    for file in facts.home.sockets:
        yield from _exposed_file(file, mode="600")


def _not_isolated(facts: Facts) -> Iterator[Hit]:
    problems: dict[str, list[str]] = {}
    for replica in facts.replicas:
        for one in replica.not_isolated:
            problems.setdefault(one, []).append(replica.name)
    for one, names in problems.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield Hit(where=f"replica {names[0]}", seen=f"{names[0]}{others} {one}")


def _token(facts: Facts) -> Iterator[Hit]:
    token = facts.home.admin_token
    # Even where nobody gets to it now: it is copied and backed up with its mode.
    if token is not None and token.opens(_ANY):
        seen = f"{token.path} has mode {mode_text(token.mode)}"
        yield Hit(where=token.path, seen=seen, fix=f"chmod 600 {token.path}")


def _network_state(facts: Facts) -> Iterator[Hit]:
    home = facts.home
    if home.state is not None and home.file_system in _NETWORK_FILE_SYSTEMS:
        yield Hit(
            where=home.state.path,
            seen=f"SQLite in {home.state.path}, on a file system of type {home.file_system}",
        )


def _clear_password(facts: Facts) -> Iterator[Hit]:
    home = facts.home
    if home.state_url_has_password:
        seen = f"{home.state_url_source} holds {home.state_url}"
        yield Hit(where=home.state_url_source, seen=seen)


def _root(facts: Facts) -> Iterator[Hit]:
    roots = [process for process in facts.processes if process.uid == 0]
    if roots:
        names = ", ".join(f"{process.name} (pid {process.pid})" for process in roots[:4])
        more = f" and {len(roots) - 4} more" if len(roots) > 4 else ""  # noqa: PLR2004  # as shown
        yield Hit(where="processes", seen=f"user 0 runs {names}{more}")


def _core_dumps(facts: Facts) -> Iterator[Hit]:
    dumping = [process for process in facts.processes if process.core_bytes != 0]
    if dumping:
        names = ", ".join(f"{process.name} (pid {process.pid})" for process in dumping[:4])
        more = f" and {len(dumping) - 4} more" if len(dumping) > 4 else ""  # noqa: PLR2004  # as shown
        yield Hit(where="processes", seen=f"the limit of core dumps is not 0 for {names}{more}")


def _debug(facts: Facts) -> Iterator[Hit]:
    if facts.home.log_level.lower() in {"debug", "trace"}:
        seen = f"the control plane runs with the log level {facts.home.log_level.lower()}"
        yield Hit(where="log level", seen=seen)


CHECKS: Final = (
    Check(
        id="HR501",
        title="The management API talks in plain text beyond this machine",
        severity=Severity.CRITICAL,
        why="The token that changes everything can be read on the way.",
        fix="headrace up --admin-host 127.0.0.1",
        needs=(Need.LISTENERS,),
        find=_plain_management,
    ),
    Check(
        id="HR502",
        title="The management API is reached from other machines",
        severity=Severity.MEDIUM,
        why="Whoever steals a token may use it from anywhere.",
        fix="Bind it to 127.0.0.1 or to a network of operators only (`--admin-host`).",
        needs=(Need.LISTENERS,),
        find=_management_beyond,
    ),
    Check(
        id="HR503",
        title="Metrics are read from other machines",
        severity=Severity.MEDIUM,
        why="They tell names, load and failures to everybody who asks.",
        fix="Bind them to 127.0.0.1 or to the monitoring's network, or let a firewall do it.",
        needs=(Need.LISTENERS,),
        find=_metrics_beyond,
    ),
    Check(
        id="HR504",
        title="The admin token can be read by others",
        severity=Severity.CRITICAL,
        why="Whoever reads it may change everything.",
        fix="chmod 600 the file, and make a new token.",
        needs=(Need.HOST,),
        find=_token,
    ),
    Check(
        id="HR505",
        title="The home directory is open to other users",
        severity=Severity.HIGH,
        why="State, models, sockets and logs lie in it.",
        fix="chmod 700 the directory.",
        needs=(Need.HOST,),
        find=lambda facts: _exposed_file(facts.home.home, mode="700"),
    ),
    Check(
        id="HR506",
        title="The state's database is open to other users",
        severity=Severity.HIGH,
        why="It holds hashes of keys, the history and every spec.",
        fix="chmod 600 the file.",
        needs=(Need.HOST,),
        find=lambda facts: _exposed_file(facts.home.state, mode="600"),
    ),
    Check(
        id="HR507",
        title="A private socket of the gateway is open to other users",
        severity=Severity.HIGH,
        why="Who connects is asked for nothing: he can call every endpoint, or drain the gateway.",
        fix="chmod 600 the socket.",
        needs=(Need.HOST,),
        find=_open_sockets,
    ),
    Check(
        id="HR508",
        title="State lies in SQLite on a network file system",
        severity=Severity.HIGH,
        why="Locks of such file systems are not to be relied on: the database can be destroyed.",
        fix="Put the home on a local disk, or the state into Postgres (`--state-url`).",
        needs=(Need.HOST,),
        find=_network_state,
    ),
    Check(
        id="HR509",
        title="The database's password stands in clear",
        severity=Severity.MEDIUM,
        why="Environments and command lines are shown by `ps`, dumps and crash reports.",
        fix="Leave it out of the URL: a ~/.pgpass file of mode 0600, or PGPASSFILE.",
        needs=(Need.HOST,),
        find=_clear_password,
    ),
    Check(
        id="HR510",
        title="The system runs as root",
        severity=Severity.HIGH,
        why="Whoever takes over one of these processes has the whole machine.",
        fix="Run it as a user of its own: `useradd --system headrace`, `User=headrace` in the "
        "unit, `runAsNonRoot: true` in a pod.",
        needs=(Need.HOST,),
        find=_root,
    ),
    Check(
        id="HR511",
        title="A crash writes memory to disk",
        severity=Severity.LOW,
        why="A core dump holds keys, inputs and answers, and is kept for long.",
        fix="ulimit -c 0   # or LimitCORE=0 in the unit",
        needs=(Need.HOST,),
        find=_core_dumps,
    ),
    Check(
        id="HR512",
        title="The log level is debug",
        severity=Severity.LOW,
        why="Logs grow by every request, and tell more than an outsider should read.",
        fix="headrace up --log-level info",
        needs=(Need.HOST,),
        find=_debug,
    ),
    Check(
        id="HR513",
        title="A replica is not kept apart",
        severity=Severity.MEDIUM,
        why="A model that was tampered with reaches what is not its own.",
        fix="Run where the kernel allows namespaces, or as root, which then hands replicas to "
        "users of their own; `headrace status` says what is lacking.",
        needs=(Need.ISOLATION,),
        find=_not_isolated,
    ),
)
