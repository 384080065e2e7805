"""Unmodified clients of OpenAI's and Cohere's API against the gateway."""

import shutil

import pytest

from tests.clients.conftest import ENVIRONMENT, Clients
from tests.clients.table import LACKS, OPERATIONS

PAIRS = [(client, name) for name, clients in OPERATIONS.items() for client in clients]
LACKS_NODE = shutil.which("node") is None or not (ENVIRONMENT / "node").exists()


@pytest.mark.parametrize("server", ["stub", "smollm2"])
@pytest.mark.parametrize(("client", "operation"), PAIRS)
def test_an_unmodified_client_gets_what_it_expects(
    clients: Clients, client: str, operation: str, server: str
) -> None:
    if client == "openai-js" and LACKS_NODE:
        pytest.skip("node or npm is not on PATH: install Node 20, then make setup ENV=clients")
    if reason := LACKS.get((operation, server)):
        pytest.skip(reason)
    assert clients.error(client, operation, server) == ""
