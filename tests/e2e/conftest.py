"""What all end-to-end tests share."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.ordinary_user import NoOrdinaryUserError, OrdinaryUser, an_ordinary_user


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may read, as pytest's is not: replicas run as others under root.

    It is not in /tmp either, of which each replica has its own.
    """
    around = Path("/var/lib") if os.geteuid() == 0 else Path.home()
    with tempfile.TemporaryDirectory(prefix="hr-open-", dir=around) as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def ordinary_user() -> Iterator[OrdinaryUser]:
    """A user without rights: under root another one, else the user of the tests."""
    try:
        with an_ordinary_user() as user:
            yield user
    except NoOrdinaryUserError as error:
        pytest.skip(str(error))


@pytest.fixture
def system() -> Iterator[System]:
    """A control plane that is not started yet."""
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(Path(directory) / "home")
        try:
            yield system
        finally:
            system.close()
