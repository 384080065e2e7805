"""Users, tokens and the trail by commands, against a running system."""

import contextlib
import json
import sqlite3

import pytest

from tests.e2e.cli.conftest import PORTS, Shell

pytestmark = pytest.mark.e2e


@pytest.mark.long
def test_a_token_does_what_its_role_says(up: Shell) -> None:
    made = up.run("tokens", "create", "ci", "--role", "operator:digits", "--out", "ci.token")
    file = up.folder / "ci.token"
    me = up.run("users", "me", "--token-file", file)
    status = up.run("status", "--token-file", file)
    undo = up.run("undo", "second", "--token-file", file)
    users = up.run("users", "list", "--token-file", file)
    listed = json.loads(up.run("tokens", "list", "--json").stdout)
    mine = next(one for one in listed if one["owner"] == "ci")
    revoked = up.run("tokens", "revoke", mine["id"])
    after = up.run("status", "--token-file", file)

    assert made.returncode == 0, made.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    assert me.stdout == "ci: operator:digits\n"
    assert "digits" in status.stdout
    assert "second" not in status.stdout
    assert (undo.returncode, "needs operator:second" in undo.stderr) == (1, True)
    assert (users.returncode, "`headrace users grant ci admin`" in users.stderr) == (1, True)
    assert revoked.returncode == 0
    assert (after.returncode, "is revoked" in after.stderr) == (1, True)


@pytest.mark.long
def test_the_trail_is_listed_and_verified_and_a_spoiled_one_told(shell: Shell) -> None:
    up = shell.run("up", "mlp.onnx", "--detach", *PORTS)
    pushed = shell.run("models", "push", "extra", "mlp.onnx")
    entries = json.loads(shell.run("trail", "list", "--json").stdout)
    text = shell.run("trail", "list", "--limit", "1")
    whole = shell.run("trail", "verify")
    checkpoint = whole.stdout.strip()
    again = shell.run("trail", "verify", "--checkpoint", checkpoint)
    other = shell.run("trail", "verify", "--checkpoint", f"{checkpoint[:-1]}x")
    with contextlib.closing(sqlite3.connect(shell.home / "state.db")) as database, database:
        database.execute("UPDATE trail SET after = '{}' WHERE action = 'endpoint.patch'")
    spoiled = shell.run("trail", "verify", "--json")

    assert (up.returncode, pushed.returncode) == (0, 0), up.stderr + pushed.stderr
    assert [entry["action"] for entry in entries] == [
        *("user.add", "token.create", "endpoint.patch", "model.push"),
    ]
    assert entries[2]["after"]["endpoints"]["mlp"]["models"] == ["mlp:1"]
    assert entries[3]["actor"] == entries[2]["actor"] == "admin"  # not by hand: it runs
    assert text.stdout.splitlines()[1].split()[0] == "4"
    assert (whole.returncode, again.returncode) == (0, 0)
    assert (other.returncode, "hash differs from the checkpoint" in other.stderr) == (1, True)
    assert spoiled.returncode == 1
    assert json.loads(spoiled.stdout)["broken"] == {
        "entry": 3,
        "reason": "its content is not what was written",
    }
