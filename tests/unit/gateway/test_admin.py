from pathlib import Path

import pytest

from headrace.gateway import Admin, GatewayUnavailableError


@pytest.mark.anyio
async def test_a_missing_socket_is_an_unavailable_gateway(tmp_path: Path) -> None:
    with pytest.raises(GatewayUnavailableError, match="does not answer"):
        await Admin(tmp_path / "no.sock").get("/ready")
