"""API keys by commands: whoever has none is told how to show one, and a void one opens nothing."""

import json

import pytest

from tests.e2e.cli.conftest import PORTS, Shell

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SPEC = """version: 1
tiers: [{name: gold, priority: 10}]
endpoints:
  - {name: digits, model: mlp.onnx, access: [key]}
"""


@pytest.fixture
def asking(shell: Shell) -> Shell:
    (shell.folder / "headrace.yaml").write_text(SPEC)
    up = shell.run("up", "headrace.yaml", "--detach", *PORTS)
    assert up.returncode == 0, up.stderr
    return shell


def test_a_key_is_made_shown_listed_and_revoked(asking: Shell) -> None:
    nobody = asking.run("infer", "digits")
    made = asking.run("keys", "create", "shop", "--scope", "infer:digits", "--tier", "gold")
    key = made.stdout.strip()
    somebody = asking.run("infer", "digits", "--key", key)
    filed = asking.run("keys", "create", "files", "--expires-in", "15m", "--out", "files.key")
    unwritten = asking.run("keys", "create", "lost", "--out", "nowhere/lost.key")
    by_file = asking.run("infer", "digits", "--key", "@files.key")
    listed = json.loads(asking.run("keys", "list", "--json").stdout)
    shown = asking.run("keys", "list")
    revoked = asking.run("keys", "revoke", "shop")
    after = asking.run("infer", "digits", "--key", key)
    left = json.loads(asking.run("keys", "list", "--json").stdout)
    all_of_them = json.loads(asking.run("keys", "list", "--all", "--json").stdout)

    assert nobody.returncode == 1
    assert "`headrace keys create` creates an API key" in nobody.stderr
    assert made.returncode == 0, made.stderr
    assert len(key) == 59
    assert somebody.returncode == 0, somebody.stderr
    assert key not in filed.stdout + filed.stderr
    assert (asking.folder / "files.key").stat().st_mode & 0o777 == 0o600
    assert "cannot write nowhere/lost.key" in unwritten.stderr
    assert by_file.returncode == 0, by_file.stderr
    assert [(one["name"], one["scopes"], one["tier"]) for one in listed] == [
        ("shop", ["infer:digits"], "gold"),
        ("files", ["infer:*"], ""),
    ]
    assert key.rpartition("_")[2] not in shown.stdout
    assert "shop" in revoked.stderr
    assert (after.returncode, "revoked" in after.stderr) == (1, True)
    assert [one["name"] for one in left] == ["files"]
    assert {one["name"]: one["state"] for one in all_of_them} == {
        "shop": "revoked",
        "files": "valid",
    }


def test_what_is_wrong_with_a_wish_is_said(asking: Shell) -> None:
    scope = asking.run("keys", "create", "a", "--scope", "digits")
    span = asking.run("keys", "create", "a", "--expires-in", "soon")
    tier = asking.run("keys", "create", "a", "--tier", "platinum")
    unknown = asking.run("keys", "revoke", "nobody")

    assert scope.returncode != 0
    assert "infer:" in scope.stderr
    assert (span.returncode, "90s, 15m, 12h, 30d or 8w" in " ".join(span.stderr.split())) == (
        2,
        True,
    )
    assert (tier.returncode, "unknown tier 'platinum'" in tier.stderr) == (1, True)
    assert (unknown.returncode, "nobody" in unknown.stderr) == (1, True)
