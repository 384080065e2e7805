"""A user without rights, as whom tests that run as root start whole control planes.

The interpreter may lie below a directory that only root may enter, such as root's own home. In a
mount namespace of the started process an empty directory that everybody may enter covers it, and
the interpreter is mounted there again under its own path.
"""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

UID: Final = 59_321
"""No user of a distribution has this number, and it is outside the range of the sandbox."""
_SCRIPT: Final = """
stage=$1 covered=$2 retained=$3 uid=$4
shift 4
IFS=:
for path in $retained; do mkdir -p "$stage$path"; mount --rbind "$path" "$stage$path"; done
for path in $covered; do mount -t tmpfs -o mode=0755,size=1m none "$path"; done
for path in $retained; do mkdir -p "$path"; mount --rbind "$stage$path" "$path"; done
unset IFS
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups -- "$@"
"""


class NoOrdinaryUserError(Exception):
    """The tests run as root, and cannot start a process as another user."""


@dataclass(frozen=True, slots=True)
class OrdinaryUser:
    """Whose processes `command` starts: the user of the tests unless those run as root."""

    uid: int
    stage: Path = field(default=Path())
    """An empty directory, for mounts that only the started process sees."""

    def command(self, *arguments: str) -> list[str]:
        """`arguments` as this user; what is started keeps its process id."""
        if self.uid == os.geteuid():
            return list(arguments)
        retained = {
            path: covered
            for path in (sys.base_prefix, sys.prefix, str(Path(__file__).parents[2]))
            if (covered := _closed(Path(path))) is not None
        }
        launcher = ["sh", "-ec", _SCRIPT, "sh", str(self.stage)]
        lists = [":".join(dict.fromkeys(paths)) for paths in (retained.values(), retained)]
        unshare = ["unshare", "--mount", "--propagation", "private", "--"]
        return [*unshare, *launcher, *lists, str(self.uid), *arguments]

    def own(self, folder: Path) -> None:
        """Make `folder` and all that is in it this user's."""
        if self.uid != os.geteuid():
            for path in (folder, *folder.rglob("*")):
                os.chown(path, self.uid, self.uid, follow_symlinks=False)


@contextmanager
def an_ordinary_user() -> Iterator[OrdinaryUser]:
    """The user of the tests, or under root another one.

    Raises:
        NoOrdinaryUserError: The message says what is missing.
    """
    if os.geteuid() != 0:
        yield OrdinaryUser(os.geteuid())
        return
    missing = [name for name in ("unshare", "setpriv") if shutil.which(name) is None]
    if missing:
        raise NoOrdinaryUserError(f"there is no {' and no '.join(missing)} (util-linux)")
    with tempfile.TemporaryDirectory(prefix="hr-stage-") as directory:
        user = OrdinaryUser(UID, Path(directory))
        attempt = user.command(sys.executable, "-c", "import os, headrace; print(os.getuid())")
        done = subprocess.run(attempt, capture_output=True, text=True, check=False)
        if done.stdout.strip() != str(UID):
            raise NoOrdinaryUserError(f"a process cannot become user {UID}: {done.stderr}")
        yield user


def _closed(path: Path) -> str | None:
    """The first directory on the way to `path` that not everybody may enter."""
    steps = (*reversed(path.parents), path)
    return next((str(step) for step in steps if not step.stat().st_mode & stat.S_IXOTH), None)
