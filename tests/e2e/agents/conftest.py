"""A control plane and gateways of their own, on loopback, by real mutual TLS."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority
from tests.e2e.agents.lab import Lab
from tests.e2e.control.system import System


@pytest.fixture
def lab() -> Iterator[Lab]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        root = Path(directory)
        authority = Authority(root / "pki")
        found = Lab(system=System(root / "home"), authority=authority, root=root)
        try:
            yield found
        finally:
            found.close()
