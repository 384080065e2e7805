"""Program in a sandbox: who may read what it gets, and when it is refused."""

import os
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from headrace.control.local.sandbox import (
    FIRST_UID,
    KernelFeatures,
    KernelProbe,
    Sandbox,
    SandboxPurpose,
)
from headrace.control.sandboxed.run import SandboxedRun, SandboxLimits
from headrace.core import FailedPreconditionError

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or bool(KernelProbe().result().user), reason="cannot become another user"
)
LIMITS = SandboxLimits(timeout_s=30.0, timeout_reason="it took too long", memory_bytes=1 << 40)
SEARCHER = FIRST_UID + SandboxPurpose.SEARCH
PROGRAM = """
import os
import sys
from pathlib import Path

print(os.getuid(), Path(sys.argv[1]).read_text(), Path("request.json").exists())
"""


class Nothing(msgspec.Struct):
    """A request that asks for nothing."""


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        yield Path(directory)


def place(home: Path, *, has_namespaces: bool) -> SandboxedRun:
    """A search's, in a home that is closed to others."""
    able = KernelFeatures(namespaces="not here", user="", landlock=True)
    abilities = KernelProbe().result if has_namespaces else lambda: able
    made = SandboxedRun(
        sandbox=Sandbox(hide=(home,), reports=home, kernel_features=abilities),
        folder=home / "optimize" / "key",
        purpose=SandboxPurpose.SEARCH,
    )
    made.own.mkdir(parents=True, mode=0o700)
    (made.own / "program.py").write_text(PROGRAM)
    (home / "data").write_text("secret")
    made.write_request("request.json", Nothing())
    return made


def said(made: SandboxedRun) -> tuple[str, str]:
    """What it prints, and how it ended."""
    data = made.add_input(made.folder.parent.parent / "data", "data")
    with made.started("program", str(data), reads_output=True) as running:
        heard = b"".join(running.watch(LIMITS))
    return heard.decode(), running.reason


@needs_root
def test_with_namespaces_a_closed_home_is_no_obstacle(home: Path) -> None:
    if KernelProbe().result().namespaces:
        pytest.skip("no namespaces")

    assert said(place(home, has_namespaces=True)) == (f"{SEARCHER} secret True\n", "")


@needs_root
def test_without_namespaces_a_program_that_may_not_read_its_files_is_refused(home: Path) -> None:
    output, why = said(place(home, has_namespaces=False))

    assert output == ""
    assert f"user {SEARCHER}, which the process would run as, may not read /" in why
    assert "or do not run headrace as root" in why


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_that_can_become_nobody_else_is_refused(home: Path) -> None:
    made = place(home, has_namespaces=False)
    made.sandbox.kernel_features = lambda: KernelFeatures(user="no CAP_SETUID", landlock=True)

    with pytest.raises(FailedPreconditionError, match=r"stays root \(no CAP_SETUID\)"):
        said(made)


@needs_root
def test_what_it_is_given_is_closed_to_all_but_its_user(home: Path) -> None:
    made = place(home, has_namespaces=True)
    said(made)

    found = made.folder.stat()
    assert (found.st_mode & 0o777, found.st_uid, found.st_gid) == (0o710, 0, SEARCHER)


def test_a_request_replaces_the_link_that_a_program_left(home: Path) -> None:
    made = place(home, has_namespaces=False)
    (made.own / "request.json").unlink()
    (made.own / "request.json").symlink_to(home / "data")

    made.write_request("request.json", Nothing())

    assert (home / "data").read_text() == "secret"
    assert (made.own / "request.json").read_text() == "{}"


def test_a_program_inherits_no_descriptor(home: Path) -> None:
    made = place(home, has_namespaces=not KernelProbe().result().namespaces)
    (made.own / "program.py").write_text("import os; print(sorted(os.listdir('/proc/self/fd')))")
    with (home / "data").open() as secret:
        os.set_inheritable(secret.fileno(), True)  # noqa: FBT003  # positional only

        output, why = said(made)

    assert why == ""
    assert output == "['0', '1', '2', '3']\n"  # the last one is the listing's own


@needs_root
def test_what_only_root_may_read_is_not_read_as_root(home: Path) -> None:
    # As a model can leave it: an ACL lets root in, and nobody else that is not its owner.
    made = place(home, has_namespaces=True)
    folder = home / "left"
    folder.mkdir()
    (folder / "model.py").write_text("print(open('/etc/shadow').read())")
    header, root = struct.pack("<I", 2), struct.pack("<HHI", 2, 7, 0)
    owner, group, mask, other = (struct.pack("<HHI", *entry, 2**32 - 1) for entry in _ENTRIES)
    try:
        os.setxattr(folder, "system.posix_acl_access", header + owner + root + group + mask + other)
    except OSError as error:
        pytest.skip(f"no access control lists here: {error}")
    os.chown(folder, 1234, 1234)
    spied = replace(made, keep=(folder,))

    output, why = said(spied)

    assert output == ""
    assert f"may not read {folder}" in why
    assert "chmod -R o+rX" in why


_ENTRIES = ((1, 7), (4, 0), (16, 7), (32, 0))
"""Tag and rights of the owner, the group, the mask and others: see acl(5)."""
