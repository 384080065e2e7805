"""Libraries of the data path: each replica pays for what it loads, in memory and start."""

import subprocess
import sys

import pytest

CONTROL_PLANE = {
    "pydantic", "sqlalchemy", "fastapi", "starlette", "polars", "pyarrow", "httpx", "jinja2",
    "rich", "typer", "cryptography", "joserfc",
}  # fmt: skip


@pytest.mark.parametrize(
    "module",
    [
        "headrace.serving.__main__",
        "headrace.serving.pool.process",
        "headrace.serving.pool.fork_server",
    ],
)
def test_a_replica_loads_no_library_of_the_control_plane(module: str) -> None:
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"

    printed = subprocess.check_output([sys.executable, "-c", code], text=True)  # noqa: S603  # ours

    assert not CONTROL_PLANE & set(printed.split())
