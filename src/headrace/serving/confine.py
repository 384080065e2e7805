"""`python -I -S confine.py SPEC COMMAND…`: become COMMAND, with less than this process may do.

Run by its path in a bare interpreter, so it imports nothing of Headrace and costs a few
milliseconds. What the kernel grants is found out beforehand, by `--probe`: what fails here is a
fault, and nothing is started without what SPEC asks for.

What SPEC (JSON) holds:

    uid         whom a root process becomes; null otherwise
    files       cover what `hide` names, by a mount namespace
    network     `allowed`, `open` where it cannot be closed, `namespace` for none at all, or
                `landlock` for no TCP
    alone       signals no process but those it starts, where the kernel can see to it
    user_ns     needs a user namespace for these
    hide        directories that are empty afterwards, but for what `keep` and `own` name
    keep        paths that stay, read-only
    own         paths that stay and belong to `uid`: the run directory first, where it then is
    reach       paths that `uid` has to be able to read: interpreter and libraries
    also        paths that it should, if they are there: what else is imported from
    limits      by name: `open_files`, `processes`, `address_space_bytes`, `file_bytes`; null for
                what there is
    report      where it writes what it did
    whole       of `own`: directories whose files belong to `uid` as well; may be left out
    attached    dies with the process that started it; may be left out
    problems    what the report says besides, of what was known before; may be left out
"""

# ruff: noqa: PTH103, PTH108, PTH110, PTH112, PTH120, PTH123, PTH208  # `pathlib` costs more than all else here

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import stat
import sys

TYPE_CHECKING = False  # `typing` costs as much as all else together
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import NotRequired, TypedDict

    class Spec(TypedDict):
        """What a process is to become; see above."""

        uid: int | None
        files: bool
        network: str
        user_ns: bool
        alone: bool
        hide: list[str]
        keep: list[str]
        own: list[str]
        reach: list[str]
        also: list[str]
        limits: dict[str, int | None]
        report: str
        whole: NotRequired[list[str]]
        attached: NotRequired[bool]
        problems: NotRequired[list[str]]


_NEWNS, _NEWUSER, _NEWNET, _NEWIPC = 0x00020000, 0x10000000, 0x40000000, 0x08000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT = 1, 2, 4, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""By statvfs(3)'s flag: the one of mount(2) that a remount in a user namespace has to repeat."""
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_LAST_CAPABILITY = 63
_SIGKILL = 9  # `signal` costs more than all else here
_CAPABILITY_VERSION = 0x20080522
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_NO_TCP, _LANDLOCK_SCOPED = 1 | 2, 1 | 2
_LANDLOCK_NET_ABI, _LANDLOCK_SCOPE_ABI = 4, 6
_COVER_OPTIONS = b"mode=0755,size=1m,nr_inodes=10k"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Leave these namespaces for new ones; ours, and ours alone, is mapped in a user namespace."""
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(flags), "unshare")
    if flags & _NEWUSER:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def mount(
    source: str, target: str, kind: bytes | None, flags: int, data: bytes | None = None
) -> None:
    """Put a file system, or what lies elsewhere, at `target`."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind, ctypes.c_ulong(flags), data
    )
    _check(result, f"mount {target}")


def landlock(*, alone: bool, no_tcp: bool) -> bool:
    """Send no signals to strangers, and open no TCP, as asked; whether the second holds."""
    abi = _libc.syscall(_SYS_LANDLOCK_CREATE, None, 0, 1)
    net = _LANDLOCK_NO_TCP if no_tcp and abi >= _LANDLOCK_NET_ABI else 0
    scoped = _LANDLOCK_SCOPED if alone and abi >= _LANDLOCK_SCOPE_ABI else 0
    if not net and not scoped:
        return False
    attributes = (ctypes.c_uint64 * 3)(0, net, scoped)
    size = 24 if abi >= _LANDLOCK_SCOPE_ABI else 16
    ruleset = _check(
        _libc.syscall(_SYS_LANDLOCK_CREATE, ctypes.byref(attributes), size, 0), "landlock"
    )
    _check(_libc.syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)
    return bool(net)


def drop_capabilities() -> None:
    """Have none after the next exec, whoever this process is then."""
    for number in range(_LAST_CAPABILITY + 1):
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break


def give_up_capabilities() -> None:
    """Have none from now on: a forked process never gets to the next exec."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")


def die_with(parent: int) -> None:
    """Be killed when `parent` ends: becoming another user, or having new rights, took that away."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "die with the parent")
    if os.getppid() != parent:
        raise OSError(errno.ESRCH, "who started it is gone")


def is_inside(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or lies in it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def closed_ancestor(path: str) -> str | None:
    """The topmost directory on the way to `path` that we, as we are, may not pass."""
    parts = path.strip("/").split("/")
    for i in range(1, len(parts)):
        ancestor = "/" + "/".join(parts[:i])
        if not os.access(ancestor, os.X_OK, effective_ids=True):
            return ancestor
    return None


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Have the rights of `uid` for the block; root's come back after it."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def can_read(path: str) -> bool:
    """Whether we, as we are, may read a file or list a directory."""
    mode = os.R_OK | (os.X_OK if os.path.isdir(path) else 0)
    return os.access(path, mode, effective_ids=True)


def cover(hide: list[str], keep: list[str], own: list[str]) -> None:
    """Put an empty directory over each of `hide`, with what is kept of it bound into it.

    The outer ones come first: what an outer one keeps may hold an inner one.
    """
    hide = sorted({path for path in hide if os.path.isdir(path)}, key=len)
    kept = sorted({*keep, *own}, key=len)
    held: dict[str, tuple[int, bool]] = {}
    for path in kept:
        if os.path.exists(path) and any(is_inside(path, covered) for covered in hide):
            held[path] = (os.open(path, os.O_PATH | os.O_CLOEXEC), os.path.isdir(path))
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    for covered in hide:
        os.makedirs(covered, mode=0o755, exist_ok=True)
        mount("tmpfs", covered, b"tmpfs", _MS_NOSUID | _MS_NODEV, _COVER_OPTIONS)
        inner = [other for other in hide if other != covered and is_inside(other, covered)]
        for path, (descriptor, is_directory) in held.items():
            if not is_inside(path, covered) or any(is_inside(path, other) for other in inner):
                continue
            make_place(path, is_directory=is_directory)
            mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC)
            if path not in own or not is_directory:
                remount(path)
    for covered in reversed(hide):
        flags = _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        mount("tmpfs", covered, b"tmpfs", flags, _COVER_OPTIONS)
    for descriptor, _ in held.values():
        os.close(descriptor)


def make_place(path: str, *, is_directory: bool) -> None:
    """See to it that something is there to bind to."""
    if is_directory:
        os.makedirs(path, mode=0o755, exist_ok=True)
    elif not os.path.exists(path):  # else what holds it is kept as well, and may be read-only
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def remount(path: str, *, read_only: bool = True) -> None:
    """Let nobody, or anybody, write below a bound path; what it lies on keeps its own flags."""
    there = os.statvfs(path).f_flag
    kept = sum(flag for bit, flag in _KEPT_FLAGS.items() if there & bit)
    flags = _MS_BIND | _MS_REMOUNT | _MS_NOSUID | kept | (_MS_RDONLY if read_only else 0)
    mount("none", path, None, flags)


def set_limits(limits: dict[str, int | None]) -> None:
    """As many open files and processes as `limits` say, and no core dump."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, which in (
        ("open_files", resource.RLIMIT_NOFILE),
        ("processes", resource.RLIMIT_NPROC),
        ("address_space_bytes", resource.RLIMIT_AS),
        ("file_bytes", resource.RLIMIT_FSIZE),
    ):
        wanted = limits.get(name)
        if wanted is None:
            continue
        _, most = resource.getrlimit(which)
        value = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        resource.setrlimit(which, (value, value))


def namespaces(spec: Spec) -> int:
    """The namespaces that a process leaves."""
    flags = _NEWNS if spec["files"] else 0
    flags |= _NEWNET if spec["network"] == "namespace" else 0
    flags |= _NEWIPC if flags else 0
    flags |= _NEWUSER if flags and spec["user_ns"] else 0
    return flags


def give(paths: list[str], uid: int) -> None:
    """Let `paths` belong to `uid`."""
    for path in paths:
        os.chown(path, uid, uid, follow_symlinks=False)


def give_all(folder: str, uid: int, gid: int, *, of: range | None = None) -> None:
    """Let a directory, its files, and those of directories in it belong to somebody.

    Who wrote them may be hostile: nothing is followed, and what has another name stays. So does
    what is none of the users `of`, if these are given.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _give(descriptor, os.fstat(descriptor).st_uid, uid, gid, of)
        for name in os.listdir(descriptor):
            _give_inner(name, descriptor, uid, gid, of, depth=1)
    finally:
        os.close(descriptor)


def _give(descriptor: int, owner: int, uid: int, gid: int, of: range | None) -> None:
    if of is None or owner in of:
        os.fchown(descriptor, uid, gid)


def _give_inner(
    name: str, folder: int, uid: int, gid: int, of: range | None, *, depth: int
) -> None:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except OSError:  # it is gone, or a link
        return
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            _give(descriptor, found.st_uid, uid, gid, of)
            for inner in os.listdir(descriptor) if depth else ():
                _give_inner(inner, descriptor, uid, gid, of, depth=depth - 1)
        elif stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
            _give(descriptor, found.st_uid, uid, gid, of)
    finally:
        os.close(descriptor)


def give_back(spec: Spec) -> None:
    """Let root own what is this process's again: it has no rights beyond an owner's."""
    files = [path for path in spec["own"] if spec["files"] and not os.path.isdir(path)]
    for path in files:
        remount(path, read_only=False)
    give(spec["own"], 0)
    for path in spec.get("whole", ()):
        give_all(path, 0, 0)
    for path in files:
        remount(path)


def opened_up(spec: Spec, uid: int) -> tuple[list[str], list[str]]:
    """What to hide and to keep, so that directories that `uid` may not pass are no obstacle."""
    with acting_as(uid):
        wanted = (*spec["reach"], *spec["also"], *spec["keep"], *spec["own"])
        closed = {path: closed_ancestor(path) for path in wanted}
    hide = [*spec["hide"], *(ancestor for ancestor in closed.values() if ancestor)]
    return hide, [
        *spec["keep"],
        *(path for path in (*spec["reach"], *spec["also"]) if closed[path]),
    ]


def confine(spec: Spec) -> dict[str, object]:
    """Do what `spec` says; what was done, for the report."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
    uid, hide, keep, own = spec["uid"], spec["hide"], spec["keep"], spec["own"]
    problems = list(spec.get("problems", ()))
    if uid is not None:
        os.setgroups([])
        give(own, uid)
        for path in spec.get("whole", ()):
            give_all(path, uid, uid)
        if spec["files"]:
            hide, keep = opened_up(spec, uid)
    if flags := namespaces(spec):
        unshare(flags)
    if spec["files"]:
        cover(hide, keep, own)
    if uid is not None:
        with acting_as(uid):
            needed = (*spec["reach"], *spec["keep"], *own)
            unreadable = [path for path in needed if not can_read(path)]
        if unreadable:
            problems.append(f"runs as root, for user {uid} may not read {unreadable[0]}")
            give_back(spec)
            uid = None
    os.chdir(own[0] if own else "/")
    drop_capabilities()
    set_limits(spec["limits"])
    if uid is not None:
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    give_up_capabilities()
    no_tcp = landlock(alone=spec["alone"], no_tcp=spec["network"] == "landlock")
    if spec["network"] == "landlock" and not no_tcp:
        raise OSError(errno.ENOSYS, "landlock is gone")
    return {
        "user": os.getuid(),
        "files": spec["files"],
        "network": spec["network"],
        "problems": problems,
    }


def main(arguments: list[str]) -> int:
    """Confine this process, say what was done, and become the command."""
    spec, command = json.loads(arguments[0]), arguments[1:]
    parent = os.getppid()
    # Its predecessor's word is no word of this one's.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(spec["report"])
    report = os.open(spec["report"], os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        done = confine(spec)
        if spec.get("attached"):
            die_with(parent)
    except OSError as error:
        print(f"cannot isolate the process: {error}", file=sys.stderr)  # noqa: T201  # it has no log
        return 5
    os.write(report, json.dumps(done).encode())
    os.execv(command[0], command)  # noqa: S606  # what this program is for
    return 5  # never: the process is another one


def tried(work: Callable[[], None]) -> str:
    """Why `work` cannot be done, by doing it in a process of its own; empty if it can."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        said = ""
        try:
            work()
        except OSError as error:
            said = str(error) or errno.errorcode.get(error.errno or 0, "?")
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    heard = b""
    while part := os.read(reader, 4096):
        heard += part
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return heard.decode(errors="replace") or ("" if status == 0 else f"status {status}")


def probe() -> dict[str, object]:
    """What this kernel lets this user do, and why not what it does not."""
    is_root = os.geteuid() == 0

    def new(flags: int) -> Callable[[], None]:
        def work() -> None:
            _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
            unshare(flags)
            if flags & _NEWNS:
                mount("none", "/", None, _MS_REC | _MS_PRIVATE)
                mount("tmpfs", "/dev", b"tmpfs", _MS_NOSUID | _MS_NODEV, _COVER_OPTIONS)
                mount("tmpfs", "/dev", b"tmpfs", _MS_REMOUNT | _MS_RDONLY, _COVER_OPTIONS)

        return work

    def become() -> None:
        os.setgroups([])
        os.setresgid(60578, 60578, 60578)
        os.setresuid(60578, 60578, 60578)

    found: dict[str, bool | str] = {}
    for user_ns in (0, _NEWUSER) if is_root else (_NEWUSER,):
        found = {
            "user_ns": bool(user_ns),
            "files": tried(new(user_ns | _NEWNS | _NEWIPC)),
            "network": tried(new(user_ns | _NEWNET | _NEWIPC)),
        }
        if not found["files"] and not found["network"]:
            break
    abi = _libc.syscall(_SYS_LANDLOCK_CREATE, None, 0, 1)
    # A user namespace of root's maps root alone: nobody else can be become in it.
    can_become = is_root and not found["user_ns"]
    return found | {
        "user": (tried(become) if can_become else "needs CAP_SYS_ADMIN") if is_root else "not root",
        "landlock_net": abi >= _LANDLOCK_NET_ABI,
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        print(json.dumps(probe()))  # noqa: T201  # its answer
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
