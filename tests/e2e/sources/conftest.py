from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.source_servers import FileServer, https_server


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """An HTTPS server that this process trusts."""
    with https_server(tmp_path / "ca") as (running, authority):
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        yield running
