"""Where profiles are kept: `profiles/` of a home, a file for each model, runtime and processor."""

from pathlib import Path

from headrace.core import FailedPreconditionError, HeadraceError
from headrace.core.files import make_private_dir, write_atomic
from headrace.optimize.profiling.document import (
    Profile,
    decode_profile,
    encode_profile,
    file_prefix,
)

DIRECTORY = "profiles"


def save_profile(home: Path, profile: Profile) -> Path:
    """Keep a profile, instead of an older one of the same; where it is now.

    Raises:
        FailedPreconditionError: It cannot be written.
    """
    try:
        path = make_private_dir(home / DIRECTORY) / profile.file_name
        write_atomic(path, encode_profile(profile))
    except OSError as error:
        msg = f"the profile cannot be kept in {home / DIRECTORY}: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return path


def read_profiles(home: Path, digest: str) -> list[Profile]:
    """The profiles of a model's content, of whatever processor.

    Raises:
        ArtifactCorruptError: One is damaged; the message names the file.
        FailedPreconditionError: They cannot be read.
    """
    prefix = file_prefix(digest)
    try:
        files = sorted(
            file for file in (home / DIRECTORY).glob("*.json") if file.name.startswith(prefix)
        )
        found = [decode_profile(file.read_bytes(), where=str(file)) for file in files]
    except HeadraceError:
        raise
    except OSError as error:
        msg = f"the profiles in {home / DIRECTORY} cannot be read: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return [profile for profile in found if profile.digest == digest]


def newest_profile(model: str, home: Path) -> Profile:
    """The newest profile of a model: a path or NAME[:VERSION].

    Raises:
        FailedPreconditionError: It has none; the message names the command that makes one.
    """
    from headrace.cli.profile_subject import find_subject  # noqa: PLC0415  # the registry is slow to import

    subject = find_subject(model, server=None, home=home, runtime="", allow_code=True)
    profiles = read_profiles(home, subject.digest)
    if not profiles:
        msg = f"'{model}' has no profile in {home}; make one: headrace profile {model}"
        raise FailedPreconditionError(msg)
    return max(profiles, key=lambda profile: profile.at)
