"""Checks of the host: addresses, files of the home, processes."""

from collections.abc import Iterator
from typing import Final

from headrace.advise.audit.check import Hit, check, exposed, mode_hit, mode_text, shown
from headrace.advise.audit.facts import AuditFacts, FileFact, FindingSeverity, Need, ProcessFact

_ANY: Final = 7
_NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs"),
        *("nfs", "nfs4", "smb2", "smb3", "smbfs"),
        *("fuse.ceph", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs"),
    }
)


@check(
    "HR501",
    FindingSeverity.CRITICAL,
    "The management API uses plain text beyond this machine",
    reason="A token with full permissions can be read in transit.",
    fix="headrace up --admin-host 127.0.0.1",
    needs=(Need.LISTENERS,),
)
def _plain_management(facts: AuditFacts) -> Iterator[Hit]:
    plain = tuple(listener for listener in exposed(facts, "management") if not listener.tls)
    if plain:
        yield Hit("management API", f"it listens on {shown(plain)} without TLS")


@check(
    "HR502",
    FindingSeverity.MEDIUM,
    "The management API is reachable from other machines",
    reason="A stolen token works from anywhere.",
    fix="Bind it to 127.0.0.1 or to an operators' network (`--admin-host`).",
    needs=(Need.LISTENERS,),
)
def _management_beyond(facts: AuditFacts) -> Iterator[Hit]:
    secure = tuple(listener for listener in exposed(facts, "management") if listener.tls)
    if secure:
        yield Hit("management API", f"it listens on {shown(secure)}")


@check(
    "HR503",
    FindingSeverity.MEDIUM,
    "Metrics are readable from other machines",
    reason="They reveal names, load and failures without authentication.",
    fix="Bind them to 127.0.0.1 or to the monitoring network, or use a firewall.",
    needs=(Need.LISTENERS,),
)
def _metrics_beyond(facts: AuditFacts) -> Iterator[Hit]:
    beyond = exposed(facts, "metrics")
    if beyond:
        yield Hit("metrics", f"they are read at {shown(beyond)}")


def _exposed_file(file: FileFact | None, *, mode: str) -> Iterator[Hit]:
    if file is not None and file.opens(_ANY):
        yield mode_hit(file, location=file.path, fix=f"chmod {mode} {file.path}")


@check(
    "HR507",
    FindingSeverity.HIGH,
    "A private socket of the gateway is open to other users",
    reason="It needs no authentication: a client can call every endpoint, or drain the gateway.",
    fix="chmod 600 the socket.",
    needs=(Need.HOST,),
)
def _open_sockets(facts: AuditFacts) -> Iterator[Hit]:
    for file in facts.home.sockets:
        yield from _exposed_file(file, mode="600")


@check(
    "HR513",
    FindingSeverity.MEDIUM,
    "A replica is not isolated",
    reason="A tampered model can reach other data.",
    fix="Run where the kernel allows namespaces, or as root, which runs replicas as separate "
    "users; `headrace status` shows what is missing.",
    needs=(Need.ISOLATION,),
)
def _not_isolated(facts: AuditFacts) -> Iterator[Hit]:
    problems: dict[str, list[str]] = {}
    for replica in facts.replicas:
        for problem in replica.not_isolated:
            problems.setdefault(problem, []).append(replica.name)
    for problem, names in problems.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield Hit(f"replica {names[0]}", f"{names[0]}{others} {problem}")


@check(
    "HR504",
    FindingSeverity.CRITICAL,
    "The admin token is readable by other users",
    reason="A reader of the token may change everything.",
    fix="chmod 600 the file, and create a new token.",
    needs=(Need.HOST,),
)
def _token(facts: AuditFacts) -> Iterator[Hit]:
    token = facts.home.admin_token
    # Even if other users cannot reach it now: copies and backups keep its mode.
    if token is not None and token.opens(_ANY):
        evidence = f"{token.path} has mode {mode_text(token.mode)}"
        yield Hit(token.path, evidence, fix=f"chmod 600 {token.path}")


@check(
    "HR508",
    FindingSeverity.HIGH,
    "State is in SQLite on a network file system",
    reason="Locks of such file systems are unreliable, which can corrupt the database.",
    fix="Move the home to a local disk, or the state to Postgres (`--state-url`).",
    needs=(Need.HOST,),
)
def _network_state(facts: AuditFacts) -> Iterator[Hit]:
    home = facts.home
    if home.state is not None and home.file_system in _NETWORK_FILE_SYSTEMS:
        yield Hit(
            home.state.path,
            f"SQLite in {home.state.path}, on a file system of type {home.file_system}",
        )


@check(
    "HR509",
    FindingSeverity.MEDIUM,
    "The database's password is in plain text",
    reason="Environments and command lines are visible in `ps`, dumps and crash reports.",
    fix="Remove it from the URL: use a ~/.pgpass file of mode 0600, or PGPASSFILE.",
    needs=(Need.HOST,),
)
def _clear_password(facts: AuditFacts) -> Iterator[Hit]:
    home = facts.home
    if home.state_url_has_password:
        yield Hit(home.state_url_source, f"{home.state_url_source} holds {home.state_url}")


@check(
    "HR510",
    FindingSeverity.HIGH,
    "The system runs as root",
    reason="An attacker who takes over one of these processes controls the machine.",
    fix="Run it as a dedicated user: `useradd --system headrace`, `User=headrace` in the unit, "
    "`runAsNonRoot: true` in a pod.",
    needs=(Need.HOST,),
)
def _root(facts: AuditFacts) -> Iterator[Hit]:
    roots = [process for process in facts.processes if process.uid == 0]
    if roots:
        yield Hit("processes", f"user 0 runs {_names(roots)}")


def _names(processes: list[ProcessFact]) -> str:
    """Return names of the first processes, and the number of the others."""
    first, more = processes[:4], len(processes[4:])
    names = ", ".join(f"{process.name} (pid {process.pid})" for process in first)
    return f"{names} and {more} more" if more else names


@check(
    "HR511",
    FindingSeverity.LOW,
    "A crash writes memory to disk",
    reason="A core dump contains keys, inputs and outputs, and is stored for a long time.",
    fix="ulimit -c 0   # or LimitCORE=0 in the unit",
    needs=(Need.HOST,),
)
def _core_dumps(facts: AuditFacts) -> Iterator[Hit]:
    dumping = [process for process in facts.processes if process.core_bytes != 0]
    if dumping:
        yield Hit("processes", f"the limit of core dumps is not 0 for {_names(dumping)}")


@check(
    "HR512",
    FindingSeverity.LOW,
    "The log level is debug",
    reason="Logs grow with every request, and contain internal details.",
    fix="headrace up --log-level info",
    needs=(Need.HOST,),
)
def _debug(facts: AuditFacts) -> Iterator[Hit]:
    if facts.home.log_level.lower() in {"debug", "trace"}:
        evidence = f"the control plane runs with the log level {facts.home.log_level.lower()}"
        yield Hit("log level", evidence)


@check(
    "HR505",
    FindingSeverity.HIGH,
    "The home directory is open to other users",
    reason="It contains state, models, sockets and logs.",
    fix="chmod 700 the directory.",
    needs=(Need.HOST,),
)
def _open_home(facts: AuditFacts) -> Iterator[Hit]:
    return _exposed_file(facts.home.home, mode="700")


@check(
    "HR506",
    FindingSeverity.HIGH,
    "The state's database is open to other users",
    reason="It contains hashes of keys, the history and every spec.",
    fix="chmod 600 the file.",
    needs=(Need.HOST,),
)
def _open_state(facts: AuditFacts) -> Iterator[Hit]:
    return _exposed_file(facts.home.state, mode="600")
