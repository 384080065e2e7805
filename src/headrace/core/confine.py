"""Sandbox launcher: `python -I -S confine.py SPEC COMMAND…` restricts a process and runs COMMAND.

It runs by path in a bare interpreter and imports nothing of Headrace: it starts in milliseconds. It
fails closed: if a restriction of SPEC cannot be applied, COMMAND does not start. `--probe` prints
what the kernel allows.

Fields of SPEC (JSON):

    sandbox     `namespaces`: mount, network, IPC and PID namespaces; `landlock`: Landlock and a
                strict seccomp filter instead, under which no process is started and no socket
                connected; `open`: neither, after an administrator accepted that
    user_ns     whether the namespaces need a user namespace
    uid         the user that a root process becomes; null keeps the user
    network     whether network connections are allowed
    ports       whether the process may listen on ports below 1024; optional
    contained   false leaves out the PID namespace; optional
    filtered    false leaves out the seccomp filter and Landlock; optional
    hide        directories that the process does not see, except what `keep` and `own` name
    keep        paths that it reads
    shared      paths whose owners and modes say what it may do; optional
    own         paths that belong to `uid`; the first is the working directory
    whole       directories of `own` whose content belongs to `uid` too; optional
    reach       paths that `uid` must be able to read: interpreter and libraries
    also        other import paths
    limits      `open_files`, `processes`, `data_bytes`, `file_bytes`, `oom_score_adj`; null: as is
    report      file for what was done, as JSON
    attached    the process ends with the one that started it; optional
    handover    descriptor for the pid of the process that goes on, where this one ends; optional
    passed      another descriptor that COMMAND inherits; all others are closed; optional
    problems    text for the report; optional

In a PID namespace COMMAND is process 1: all that it starts ends with it. With `handover` it is a
child of this process's parent, and this process ends. Without, this process waits for it as the
same user, passes SIGTERM on and ends as it ends.
"""

# ruff: noqa: PTH103, PTH108, PTH110, PTH112, PTH114, PTH118, PTH120, PTH123, PTH208  # `pathlib` is the slowest import here

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import stat
import struct
import sys

TYPE_CHECKING = False  # importing `typing` takes as long as everything else together
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import NotRequired, TypedDict

    class Spec(TypedDict):
        """Restrictions of a process, as in the module's docstring."""

        sandbox: str
        user_ns: bool
        uid: int | None
        network: bool
        hide: list[str]
        keep: list[str]
        own: list[str]
        reach: list[str]
        also: list[str]
        limits: dict[str, int | None]
        report: str
        ports: NotRequired[bool]
        contained: NotRequired[bool]
        filtered: NotRequired[bool]
        shared: NotRequired[list[str]]
        whole: NotRequired[list[str]]
        attached: NotRequired[bool]
        handover: NotRequired[int]
        passed: NotRequired[int]
        problems: NotRequired[list[str]]


CANNOT_ISOLATE = 5
"""Exit status if a restriction cannot be applied; standard error has the reason."""
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm", "/run")  # noqa: S108  # no sandbox shares them
"""`/run` has sockets of services that would act for this user: D-Bus, Docker."""
_NEWNS, _NEWUSER, _NEWNET, _NEWIPC, _NEWPID = (
    0x20000,
    0x10000000,
    0x40000000,
    0x08000000,
    0x20000000,
)
_CLONE_PARENT, _CLONE_THREAD, _CLONE_NEW = 0x8000, 0x10000, 0x7E020000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REMOUNT = 1, 2, 4, 8, 32
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_KEPT_FLAGS = {2: 2, 4: 4, 8: 8, 1024: 1024, 2048: 2048, 4096: 1 << 21}
"""Map of a statvfs(3) flag to the mount(2) flag that a remount in a user namespace must repeat."""
_PR_SET_PDEATHSIG, _PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 8, 24, 38
_PR_CAP_AMBIENT, _CAP_AMBIENT_RAISE = 47, 2
_LAST_CAPABILITY, _CAP_NET_BIND_SERVICE = 63, 10
_CAPABILITY_VERSION = 0x20080522
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_SCOPED, _LANDLOCK_SCOPE_ABI = 1 | 2, 6
_LANDLOCK_READ, _LANDLOCK_FILE = 0xD, 0x4007
"""Execute and read; and the rights that a rule for a file may name: execute, write, read, truncate.
"""
_COVER_OPTIONS = b"mode=0755,size=1m,nr_inodes=10k"
_TMP_OPTIONS = b"mode=1777,size=256m"
_PIDS = 16

_libc = ctypes.CDLL(None, use_errno=True)

_MACHINE = {"x86_64": 0, "aarch64": 1}.get(os.uname().machine)
_AUDIT_ARCH = (0xC000003E, 0xC00000B7)
_SYS_SECCOMP, _SYS_CLONE, _SYS_CLONE3 = (317, 277), (56, 220), 435
_SYS_PRCTL, _SYS_SOCKET, _SYS_CONNECT = (157, 167), (41, 198), (42, 203)
_DENIED = (
    # other processes: ptrace, process_vm_readv, process_vm_writev, kcmp, pidfd_getfd
    ((101, 310, 311, 312, 438), (117, 270, 271, 272, 438)),
    # mounts: mount, umount2, pivot_root, chroot, open_tree, move_mount, fsopen, fsconfig, fsmount,
    # fspick, mount_setattr, name_to_handle_at, open_by_handle_at, quotactl, quotactl_fd,
    # fanotify_init
    (
        (165, 166, 155, 161, 428, 429, 430, 431, 432, 433, 442, 303, 304, 179, 443, 300),
        (40, 39, 41, 51, 428, 429, 430, 431, 432, 433, 442, 264, 265, 60, 443, 262),
    ),
    # kernel interfaces with a history of holes: unshare, setns, bpf, perf_event_open, userfaultfd,
    # io_uring_setup, io_uring_enter, io_uring_register, add_key, request_key, keyctl
    (
        (272, 308, 321, 298, 323, 425, 426, 427, 248, 249, 250),
        (97, 268, 280, 241, 282, 425, 426, 427, 217, 218, 219),
    ),
    # the machine: kexec_load, kexec_file_load, init_module, finit_module, delete_module, reboot,
    # swapon, swapoff, acct, settimeofday, clock_settime, adjtimex, clock_adjtime, syslog
    (
        (246, 320, 175, 313, 176, 169, 167, 168, 163, 164, 227, 159, 305, 103),
        (104, 294, 105, 273, 106, 142, 224, 225, 89, 170, 112, 171, 266, 116),
    ),
)
_DENIED_STRICTLY = ((57, 58, 200, 424, 129, 297), (130, 424, 138, 240))
"""fork, vfork, tkill, pidfd_send_signal, rt_sigqueueinfo, rt_tgsigqueueinfo."""
_SHARED_MEMORY = ((319, 447, 29), (279, 447, 194))
"""memfd_create, memfd_secret, shmget: memory that no process limit counts."""
_SYS_MMAP, _SHARED_ANONYMOUS = (9, 222), 0x21
_SIGNALS = ((62, 234), (129, 131))
"""kill, tgkill."""
_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: others, such as AF_VSOCK, ignore network namespaces."""


def _check(result: int, description: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{description}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Move to new namespaces; a new user namespace maps this user alone."""
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
    """Mount a file system, or bind `source`, at `target`."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind, ctypes.c_ulong(flags), data
    )
    _check(result, f"mount {target}")


def landlock(spec: Spec) -> None:
    """Forbid signals to other processes if the kernel can; with `landlock`, restrict files."""
    abi = _libc.syscall(_SYS_LANDLOCK_CREATE, None, 0, 1)
    rights = (1 << 12 + min(abi, 3)) - 1 if spec["sandbox"] == "landlock" else 0
    scoped = _LANDLOCK_SCOPED if abi >= _LANDLOCK_SCOPE_ABI else 0
    if not rights and not scoped:
        return
    attributes = (ctypes.c_uint64 * 3)(rights, 0, scoped)
    size = 24 if scoped else 8
    ruleset = _check(
        _libc.syscall(_SYS_LANDLOCK_CREATE, ctypes.byref(attributes), size, 0), "landlock"
    )
    if rights:
        hidden = [*spec["hide"], *PRIVATE]
        readable = (*besides("/", hidden), *spec["keep"], *spec["reach"], *spec["also"])
        allow(ruleset, [path for path in readable if path not in hidden], rights & _LANDLOCK_READ)
        allow(ruleset, besides("/dev", [*hidden, "/dev/shm"]), rights & _LANDLOCK_FILE)  # noqa: S108  # excluded
        allow(ruleset, spec["own"], rights)
    _check(_libc.syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0), "landlock")
    os.close(ruleset)


def besides(folder: str, hidden: list[str]) -> Iterator[str]:
    """Yield the entries of `folder`, recursively on the way to `hidden`, that do not hold it."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        path = os.path.join(folder, name)
        if path not in hidden and not os.path.islink(path):
            if any(is_inside(other, path) for other in hidden):
                yield from besides(path, hidden)
            else:
                yield path


def allow(ruleset: int, paths: Iterable[str], rights: int) -> None:
    """Add rules for existing paths; a file gets only the rights that apply to files."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
            of = rights if os.path.isdir(path) else rights & _LANDLOCK_FILE
            rule = ctypes.create_string_buffer(struct.pack("=Qi", of, descriptor))
            added = _libc.syscall(_SYS_LANDLOCK_ADD, ruleset, 1, rule, 0)
            os.close(descriptor)
            _check(added, f"landlock {path}")


def filter_system_calls(*, is_strict: bool, network: bool, is_bounded: bool) -> None:
    """Install the seccomp filter.

    `is_strict` also forbids starting and signalling processes; `is_bounded` also forbids shared
    memory, which the data limit of a process does not count.

    The filter denies system calls that no model needs instead of allowing the needed ones: the
    calls of the frameworks change with every release of them and of the C library, and a call
    missing from an allow-list would end a replica. Sockets are an allow-list.
    """
    if _MACHINE is None:
        raise OSError(errno.ENOSYS, f"no seccomp filter for {os.uname().machine}")
    allowed, denied = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x00050000 | errno.EPERM)

    def argument(number: int, *body: tuple[int, int, int, int]) -> list[tuple[int, int, int, int]]:
        return [(0x15, 0, len(body) + 1, number), (0x20, 0, 0, 16), *body]

    families = _FAMILIES if network or not is_strict else _FAMILIES[:1]
    program = [
        (0x20, 0, 0, 4),
        (0x15, 1, 0, _AUDIT_ARCH[_MACHINE]),
        (0x06, 0, 0, 0x80000000),
        (0x20, 0, 0, 0),
        (0x35, 0, 1, 0x40000000),  # the x32 ABI has other numbers for the same calls
        denied,
        (
            0x15,
            0,
            1,
            _SYS_CLONE3,
        ),  # its flags are unreadable here; the C library then uses clone
        (0x06, 0, 0, 0x00050000 | errno.ENOSYS),
        *argument(_SYS_PRCTL[_MACHINE], (0x15, 0, 1, _PR_SET_PDEATHSIG), denied, allowed),
        *argument(
            _SYS_SOCKET[_MACHINE],
            *(step for family in families for step in ((0x15, 0, 1, family), allowed)),
            (0x06, 0, 0, 0x00050000 | errno.EAFNOSUPPORT),
        ),
    ]
    starts = ((0x45, 1, 0, _CLONE_THREAD), denied) if is_strict else ()
    program += argument(_SYS_CLONE[_MACHINE], (0x45, 0, 1, _CLONE_NEW), denied, *starts, allowed)
    numbers = [number for group in _DENIED for number in group[_MACHINE]]
    if is_bounded:
        flags = ((0x20, 0, 0, 40), (0x54, 0, 0, _SHARED_ANONYMOUS), (0x15, 0, 1, _SHARED_ANONYMOUS))
        no_memory = (0x06, 0, 0, 0x00050000 | errno.ENOMEM)
        program += argument(_SYS_MMAP[_MACHINE], *flags, no_memory, allowed)
        numbers += _SHARED_MEMORY[_MACHINE]
    if is_strict:
        for number in _SIGNALS[_MACHINE]:
            program += argument(number, (0x15, 0, 1, os.getpid()), allowed, denied)
        numbers += [*_DENIED_STRICTLY[_MACHINE], *(() if network else (_SYS_CONNECT[_MACHINE],))]
    for number in numbers:
        program += [(0x15, 0, 1, number), denied]
    code = ctypes.create_string_buffer(
        b"".join(struct.pack("=HBBI", *step) for step in (*program, allowed))
    )
    header = ctypes.create_string_buffer(
        struct.pack("@HP", len(program) + 1, ctypes.addressof(code))
    )
    # 4: the filter adds no speculation mitigations, which would slow replicas down
    _check(_libc.syscall(_SYS_SECCOMP[_MACHINE], 1, 4, header), "seccomp")


def drop_capabilities(*, keep_ports: bool) -> None:
    """Drop all capabilities after the next exec, or all except binding low ports."""
    for number in range(_LAST_CAPABILITY + 1):
        if keep_ports and number == _CAP_NET_BIND_SERVICE:
            continue
        if _libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            break


def give_up_capabilities(*, keep_ports: bool) -> None:
    """Drop all capabilities now, or all except binding low ports."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    mask = (1 << _CAP_NET_BIND_SERVICE) if keep_ports else 0
    sets = (ctypes.c_uint32 * 6)(mask, mask, mask)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref(sets)), "capset")
    if keep_ports:
        number = _CAP_NET_BIND_SERVICE
        _check(_libc.prctl(_PR_CAP_AMBIENT, _CAP_AMBIENT_RAISE, number, 0, 0), "ambient capability")


def become(uid: int, *, keep_ports: bool = False) -> None:
    """Become user `uid` permanently."""
    os.setgroups([])
    _libc.prctl(_PR_SET_KEEPCAPS, int(keep_ports), 0, 0, 0)
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def die_with_parent() -> None:
    """Kill this process when its parent ends; a change of the user resets this."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "die with the parent")


def is_inside(path: str, directory: str) -> bool:
    """Whether `path` is `directory` or inside it."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def closed_ancestor(path: str) -> str | None:
    """Return the topmost directory on the way to `path` that the effective user may not enter."""
    parts = path.strip("/").split("/")
    for i in range(1, len(parts)):
        ancestor = "/" + "/".join(parts[:i])
        if not os.access(ancestor, os.X_OK, effective_ids=True):
            return ancestor
    return None


@contextlib.contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """Act with the rights of `uid` in the block, and as root again after it."""
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def can_read(path: str) -> bool:
    """Whether the effective user may read a file or list a directory."""
    mode = os.R_OK | (os.X_OK if os.path.isdir(path) else 0)
    return os.access(path, mode, effective_ids=True)


def cover(hide: list[str], keep: list[str], own: list[str]) -> None:
    """Mount an empty directory over each of `hide` and bind the kept paths into it.

    Outer directories come first: a path that an outer one keeps may contain an inner one.
    Directories of `PRIVATE` stay writable.
    """
    hide = sorted({path for path in (*hide, *PRIVATE) if os.path.isdir(path)}, key=len)
    bound = sorted({*keep, *own} - {*hide}, key=len)
    held: dict[str, tuple[int, bool]] = {}
    for path in bound:
        if os.path.exists(path) and any(is_inside(path, covered) for covered in hide):
            held[path] = (os.open(path, os.O_PATH | os.O_CLOEXEC), os.path.isdir(path))
    mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    for covered in hide:
        os.makedirs(covered, mode=0o755, exist_ok=True)
        options = _TMP_OPTIONS if covered in PRIVATE else _COVER_OPTIONS
        mount("tmpfs", covered, b"tmpfs", _MS_NOSUID | _MS_NODEV, options)
        inner = [other for other in hide if other != covered and is_inside(other, covered)]
        for path, (descriptor, is_directory) in held.items():
            if not is_inside(path, covered) or any(is_inside(path, other) for other in inner):
                continue
            make_target(path, is_directory=is_directory)
            mount(f"/proc/self/fd/{descriptor}", path, None, _MS_BIND | _MS_REC)
            if path not in own or not is_directory:
                make_read_only(path)
    for covered in reversed([path for path in hide if path not in PRIVATE]):
        flags = _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID | _MS_NODEV
        mount("tmpfs", covered, b"tmpfs", flags, _COVER_OPTIONS)
    for descriptor, _ in held.values():
        os.close(descriptor)
    # Outside processes are not listed. Where a container masks parts of /proc, the old mount stays.
    with contextlib.suppress(OSError):
        mount("proc", "/proc", b"proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def make_target(path: str, *, is_directory: bool) -> None:
    """Create the target to which `path` is bound."""
    if is_directory:
        os.makedirs(path, mode=0o755, exist_ok=True)
    elif not os.path.exists(path):  # otherwise its directory is kept as well, and may be read-only
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def make_read_only(path: str) -> None:
    """Remount a bound path read-only, with the flags of its file system."""
    there = os.statvfs(path).f_flag
    inherited_flags = sum(flag for bit, flag in _KEPT_FLAGS.items() if there & bit)
    mount("none", path, None, _MS_BIND | _MS_REMOUNT | _MS_NOSUID | _MS_RDONLY | inherited_flags)


def set_limits(limits: dict[str, int | None]) -> None:
    """Set the resource limits, and disable core dumps."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if adjustment := limits.get("oom_score_adj"):
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(str(adjustment))
    for name, which in (
        ("open_files", resource.RLIMIT_NOFILE),
        ("processes", resource.RLIMIT_NPROC),
        ("data_bytes", resource.RLIMIT_DATA),
        ("file_bytes", resource.RLIMIT_FSIZE),
    ):
        limit = limits.get(name)
        if limit is None:
            continue
        _, maximum = resource.getrlimit(which)
        value = limit if maximum == resource.RLIM_INFINITY else min(limit, maximum)
        resource.setrlimit(which, (value, value))


def give(paths: list[str], uid: int) -> None:
    """Change the owner of `paths` to `uid`; a group-shared directory keeps its group."""
    for path in paths:
        is_shared = os.lstat(path).st_mode & stat.S_ISGID
        os.chown(path, uid, -1 if is_shared else uid, follow_symlinks=False)


def give_all(folder: str, uid: int, gid: int, *, of: range | None = None) -> None:
    """Change the owner of a directory, its files and those of its subdirectories.

    The previous owner may be hostile: links are not followed, and files with other hard links keep
    their owner. If `of` is given, files of other users keep their owner too.
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
    except OSError:  # deleted meanwhile, or a link
        return
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            _give(descriptor, status.st_uid, uid, gid, of)
            for inner in os.listdir(descriptor) if depth else ():
                _give_inner(inner, descriptor, uid, gid, of, depth=depth - 1)
        elif stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            _give(descriptor, status.st_uid, uid, gid, of)
    finally:
        os.close(descriptor)


def confine(spec: Spec) -> dict[str, object]:
    """Apply `spec` to this process and return the report."""
    uid, hide, keep, own = spec["uid"], spec["hide"], spec["keep"], spec["own"]
    readable, shared = [*keep, *spec["reach"], *spec["also"]], spec.get("shared", [])
    if uid is not None:
        os.setgroups([])
        give(own, uid)
        for path in spec.get("whole", ()):
            give_all(path, uid, uid)
        with acting_as(uid):
            closed = map(closed_ancestor, (*readable, *own, *shared))
            hide = [*hide, *(path for path in closed if path)]
    if spec["sandbox"] == "namespaces":
        network = 0 if spec["network"] else _NEWNET
        _check(_libc.unshare(_NEWNS | _NEWIPC | network), "unshare")
        cover(hide, readable, [*own, *shared])
    if uid is not None:
        with acting_as(uid):
            for path in (*spec["reach"], *keep, *own, *shared):
                if not can_read(path):
                    raise OSError(
                        errno.EACCES,
                        f"user {uid}, which the process would run as, may not read {path}: "
                        "grant read access to others (`chmod -R o+rX`), or do not run "
                        "headrace as root",
                    )
    os.chdir(own[0] if own else "/")
    ports = spec.get("ports", False)
    drop_capabilities(keep_ports=ports)
    set_limits(spec["limits"])
    if uid is not None:
        become(uid, keep_ports=ports)
    give_up_capabilities(keep_ports=ports)
    if spec.get("filtered", True):
        landlock(spec)
    if spec["sandbox"] == "landlock":
        os.environ["TMPDIR"] = own[0] if own else "/"
    closed_by = {"namespaces": "namespace", "landlock": "seccomp"}.get(spec["sandbox"], "open")
    return {
        "user": os.getuid(),
        "files": spec["sandbox"] != "open",
        "network": "allowed" if spec["network"] else closed_by,
        "memory_bytes": spec["limits"].get("data_bytes"),
        "problems": list(spec.get("problems", ())),
    }


def enter_pid_namespace(spec: Spec) -> tuple[int, int]:
    """Return in the first process of a new PID namespace: its outer pid, and a descriptor.

    The descriptor signals the end of the outer process, which waits for this one, passes SIGTERM on
    and ends with the same status.
    """
    reader, writer = os.pipe()
    parent, handover = os.getppid(), spec.get("handover")
    unshare(_NEWPID | (_NEWUSER if spec["user_ns"] else 0))
    flags = signal.SIGCHLD | (_CLONE_PARENT if handover is not None else 0)
    pid = _check(_libc.syscall(_SYS_CLONE[_MACHINE or 0], flags, 0, 0, 0, 0), "clone")
    if pid == 0:
        os.close(writer)
        if handover is not None:
            os.close(handover)
        if own := os.read(reader, _PIDS):
            os.set_blocking(reader, False)
            return int(own), reader
        os._exit(CANNOT_ISOLATE)  # no process would supervise this one
    if handover is not None:
        os.write(handover, b"%d" % pid)
        os.write(writer, b"%d" % pid)
        os._exit(0)
    if spec["uid"] is not None:
        become(spec["uid"])
    give_up_capabilities(keep_ports=False)
    if spec.get("attached"):
        die_with_parent()
        if os.getppid() != parent:
            os._exit(CANNOT_ISOLATE)
    os.write(writer, b"%d" % pid)
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, effective(number, pid)))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return os._exit(code)


def effective(number: int, pid: int) -> int:
    """Return `number` if process `pid` handles that signal, else SIGKILL.

    The first process of a PID namespace ignores signals that it does not handle.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as file:
        caught = next((line for line in file if line.startswith("SigCgt:")), "SigCgt: 0")
        if int(caught.split()[1], 16) >> number - 1 & 1:
            return number
    return signal.SIGKILL


def close_others(keep: list[int]) -> None:
    """Close all inherited descriptors except `keep`: they would bypass any restriction."""
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in keep:
            with contextlib.suppress(OSError):  # the descriptor of the listing
                os.close(int(name))


def has_ended(reader: int) -> bool:
    """Whether the other end of a pipe is closed."""
    try:
        return not os.read(reader, 1)
    except BlockingIOError:
        return False


def main(arguments: list[str]) -> int:
    """Restrict this process, write the report, and run the command."""
    spec, command = json.loads(arguments[0]), arguments[1:]
    report, parent = -1, os.getppid()
    close_others([0, 1, 2, spec.get("handover", 0), spec.get("passed", 0)])
    try:
        _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
        # The report of an earlier process is invalid for this one.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spec["report"])
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        report = os.open(spec["report"], flags, 0o600)
        pid, standing = os.getpid(), -1
        if spec["sandbox"] == "namespaces" and spec.get("contained", True):
            pid, standing = enter_pid_namespace(spec)
        done = confine(spec)
        if "handover" not in spec and (standing >= 0 or spec.get("attached")):
            die_with_parent()
            if has_ended(standing) if standing >= 0 else os.getppid() != parent:
                return CANNOT_ISOLATE  # no process waits for this one any more
        if spec.get("filtered", True) and (_MACHINE is not None or spec["sandbox"] == "landlock"):
            is_strict = spec["sandbox"] == "landlock"
            filter_system_calls(
                is_strict=is_strict,
                network=spec["network"],
                is_bounded=spec["limits"].get("data_bytes") is not None,
            )
        if "handover" in spec and standing < 0:
            os.close(spec["handover"])
        os.write(report, json.dumps({**done, "pid": pid}).encode())
    except OSError as error:
        print(f"cannot isolate the process: {error}", file=sys.stderr)  # noqa: T201  # it has no log
        return CANNOT_ISOLATE
    os.execv(command[0], command)  # noqa: S606  # what this program is for
    return CANNOT_ISOLATE  # unreachable: the command has replaced this process


def tried(work: Callable[[], None]) -> str:
    """Return why `work` fails in a child process; empty if it succeeds."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        reason = ""
        try:
            work()
        except OSError as error:
            reason = str(error) or errno.errorcode.get(error.errno or 0, "?")
        os.write(writer, reason.encode())
        os._exit(0)
    os.close(writer)
    answer = b""
    while part := os.read(reader, 4096):
        answer += part
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return answer.decode(errors="replace") or ("" if status == 0 else f"status {status}")


def probe() -> dict[str, object]:
    """Return what the kernel allows this user, and the reason for what it does not allow."""
    is_root = os.geteuid() == 0

    def enter(flags: int) -> Callable[[], None]:
        def work() -> None:
            if _MACHINE is None:
                raise OSError(errno.ENOSYS, f"not supported on {os.uname().machine}")
            _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")
            unshare(flags | _NEWNS | _NEWNET | _NEWIPC | _NEWPID)
            mount("none", "/", None, _MS_REC | _MS_PRIVATE)
            mount("tmpfs", "/dev", b"tmpfs", _MS_NOSUID | _MS_NODEV, _COVER_OPTIONS)
            mount("tmpfs", "/dev", b"tmpfs", _MS_REMOUNT | _MS_RDONLY, _COVER_OPTIONS)

        return work

    # A user namespace that root creates maps only root: no other user exists in it.
    reason = tried(enter(0)) if is_root else "not root"
    by_user = tried(enter(_NEWUSER)) if reason else ""
    user = tried(lambda: become(60578)) if is_root else "not root"
    has_filter = (
        _MACHINE is not None
        and _libc.syscall(_SYS_SECCOMP[_MACHINE], 1, 0, None) < 0
        and ctypes.get_errno() == errno.EFAULT
    )
    abi = _libc.syscall(_SYS_LANDLOCK_CREATE, None, 0, 1)
    return {
        "user_ns": bool(reason) and not by_user and bool(user),
        "namespaces": reason and (by_user if user else reason),
        "user": user,
        "landlock": abi > 0 and has_filter,
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        print(json.dumps(probe()))  # noqa: T201  # its answer
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
