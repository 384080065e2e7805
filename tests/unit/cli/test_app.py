import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace import __version__
from headrace.cli import main
from headrace.cli.base.output import report
from headrace.core import DeadlineExceededError, InvalidArgumentError, UnavailableError
from scripts.reference.commands import command_sections
from tests.unit.cli.conftest import Command

COMMANDS = (
    *("up", "down", "apply", "serve", "infer", "status", "logs", "check", "schema", "version"),
    *("models", "push", "list", "show", "rm", "gc"),
    *("scale", "diff", "history", "undo", "events", "feedback", "context", "rollout"),
    *("start", "promote", "pause", "resume", "abort", "rollback", "simulate", "add", "use"),
    *("certs", "dev"),
)


def test_the_version_is_printed(headrace: Command) -> None:
    assert headrace("--version").out == f"headrace {__version__}\n"
    assert headrace("version").out.startswith(f"headrace {__version__}\npython ")


def test_help_names_every_command(headrace: Command) -> None:
    groups = [headrace(group, "--help").out for group in ("models", "rollout", "context", "certs")]
    text = headrace("--help").out + "".join(groups)

    assert [command for command in COMMANDS if command not in text] == []


def test_help_of_up_fits_two_screens_and_help_all_has_the_rest(headrace: Command) -> None:
    short, long = headrace("up", "--help").out, headrace("up", "--help-all").out

    assert len(short.splitlines()) <= 110
    assert "--oidc-issuer" not in short
    assert [name for name in ("--oidc-issuer", "--agents-port", "--home") if name not in long] == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fly"], "No such command 'fly'"),
        (["up", "--fly"], "No such option: --fly"),
        (["up", "nowhere.onnx"], "no file or directory 'nowhere.onnx'"),
        (["up", "--http-port", "x"], "--http-port"),
        (["up", "--http-port", "70000"], "--http-port"),
        (["up"], "nothing to serve"),
        (["apply"], "name one spec file"),
        (["check", "-f", "nowhere.yaml"], "nowhere.yaml"),
        (["check", "headrace.yaml"], "'headrace.yaml' does not exist"),
        (["infer"], "'endpoint'"),
        (["models", "push", "m", "nowhere.onnx"], "nowhere.onnx"),
        (["models", "rm", "m"], "has no version number"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_status_2(
    headrace: Command, arguments: list[str], text: str
) -> None:
    outcome = headrace(*arguments)

    assert outcome.status == 2
    assert outcome.out == ""
    assert outcome.err.startswith("headrace: ")
    assert outcome.err.count("\n") == 1
    assert text in outcome.err
    assert "--help`" in outcome.err


@pytest.mark.parametrize("group", ["drift", "models"])
def test_a_group_named_alone_shows_its_commands_and_complains_of_nothing(
    headrace: Command, group: str
) -> None:
    outcome = headrace(group)

    assert outcome.status == 2
    assert "Commands" in outcome.out
    assert outcome.err == ""


@pytest.mark.parametrize("command", ["status", "apply", "logs -f"])
def test_without_a_control_plane_the_exit_status_is_3(
    headrace: Command, home: Path, tmp_path: Path, command: str
) -> None:
    spec = tmp_path / "headrace.yaml"
    spec.write_text("version: 1\nendpoints: [{name: m, model: 'm:1'}]\n")
    arguments = ["apply", "-f", str(spec)] if command == "apply" else command.split()

    outcome = headrace(*arguments)

    assert outcome.status == 3
    assert outcome.err == f"headrace: no system runs in {home}; `headrace up` starts it\n"


def test_status_in_json_says_that_nothing_runs(headrace: Command) -> None:
    outcome = headrace("status", "--json")

    assert outcome.status == 3
    assert outcome.out.startswith('{"running":false,"ready":false,"endpoints":[]')


def test_down_where_nothing_runs_is_fine_and_makes_nothing(headrace: Command, home: Path) -> None:
    outcome = headrace("down")

    assert outcome.status == 0
    assert "no system runs" in outcome.err
    assert not home.exists()


def test_down_on_an_idle_home_is_fine(headrace: Command, home: Path) -> None:
    (home / "run").mkdir(parents=True)

    outcome = headrace("down")

    assert outcome.status == 0
    assert "no system runs" in outcome.err


def test_logs_without_any_say_so(headrace: Command) -> None:
    outcome = headrace("logs")

    assert outcome.status == 1
    assert "no logs in" in outcome.err


def test_logs_of_what_ended_are_still_there(headrace: Command, home: Path) -> None:
    (home / "logs").mkdir(parents=True)
    (home / "logs" / "m-1.log").write_text("00:00:00.002 INFO    headrace  one\nnext\n")
    (home / "logs" / "control.log").write_text("00:00:00.001 INFO    headrace  zero\n")

    outcome = headrace("logs", "--tail", "2")
    one = headrace("logs", "control", "--log-format", "json")
    none = headrace("logs", "gateway")

    assert outcome.out.splitlines() == [
        "m-1              | 00:00:00.002 INFO    headrace  one",
        "m-1              | next",
    ]
    assert '"source":"control"' in one.out
    assert "no log of 'gateway'; there are: control, m-1" in none.err


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UnavailableError("gone"), 3, "headrace: gone\n"),
        (DeadlineExceededError("late"), 3, "headrace: late\n"),
        (InvalidArgumentError("wrong"), 1, "headrace: wrong\n"),
        (PermissionError(13, "Permission denied", "/x"), 1, "headrace: Permission denied: /x\n"),
        (OSError(28, "No space left on device"), 1, "headrace: No space left on device\n"),
        (ValueError("odd"), 1, "headrace: unexpected ValueError: odd (a bug; `headrace --debug"),
        (
            ModuleNotFoundError("No module named 'cronsim'", name="cronsim"),
            1,
            "headrace: this command needs the package 'cronsim', which is not installed",
        ),
        (
            ModuleNotFoundError("No module named 'headrace.odd'", name="headrace.odd"),
            1,
            "headrace: unexpected ModuleNotFoundError: No module named 'headrace.odd' (a bug;",
        ),
    ],
)
def test_errors_are_one_line_with_their_exit_status(
    error: Exception, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error, debug=False) == status
    assert capsys.readouterr().err.startswith(text)


def test_debug_shows_the_traceback_wherever_it_stands(headrace: Command) -> None:
    outcome = headrace("status", "--debug")

    assert outcome.status == 3
    assert "Traceback" in outcome.err


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("typer.main.get_command", lambda _: type("C", (), {"main": interrupted}))

    assert main(["status"]) == 130


def test_the_reference_lists_every_command_and_option() -> None:
    text = command_sections()

    assert [c for c in COMMANDS if f"`headrace {c}`" not in text and f" {c}`" not in text] == []
    assert "| `--http-port` |" in text
    assert "`HEADRACE_HOME`" in text
    assert "Exit status" in text
    assert "--help" not in text.replace("`headrace --help`", "").replace("`--help-all`", "")


def test_the_version_is_looked_up_by_who_asks_for_it() -> None:
    code = (
        "import sys, headrace; before = 'importlib.metadata' in sys.modules;"
        "print(before, headrace.__version__, hasattr(headrace, 'wersion'))"
    )

    printed = subprocess.check_output([sys.executable, "-c", code], text=True)  # noqa: S603  # ours

    assert printed.split() == ["False", __version__, "False"]


def test_nothing_slow_is_loaded_to_print_the_version() -> None:
    code = (
        "import sys; from headrace.cli import main; main(['--version']);"
        "print(sorted({m.split('.')[0] for m in sys.modules} & "
        "{'numpy', 'pydantic', 'fastapi', 'onnxruntime', 'grpc', 'rich', 'httpx', 'asyncio'}))"
    )
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}

    printed = subprocess.check_output(  # noqa: S603  # our own interpreter
        [sys.executable, "-c", code], text=True, env=environment
    )

    assert printed.splitlines()[-1] == "[]"


def test_commands_for_a_running_system_load_no_library_of_the_control_plane() -> None:
    commands = (
        "up", "down", "apply", "check", "diff", "scale", "undo", "rollout", "stream", "status",
        "top", "events", "logs", "history", "models", "infer", "keys", "tokens", "users",
        "alerts", "trail",
    )  # fmt: skip
    code = (
        "import contextlib, io, sys; from headrace.cli import main\n"
        f"for command in {commands!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()):\n"
        "        status = main([command, '--help'])\n"
        "    assert status == 0, command\n"
        "    loaded = {m.split('.')[0] for m in sys.modules} & "
        "{'pydantic', 'sqlalchemy', 'fastapi', 'polars', 'pyarrow', 'onnxruntime', 'grpc'}\n"
        "    assert not loaded, (command, loaded)\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  # our own interpreter


@pytest.mark.parametrize(
    "arguments", [["up", "--help-all"], ["rollout", "simulate", "--runs", "2"]]
)
def test_a_reader_who_leaves_early_is_no_failure(arguments: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as closed:  # noqa: PTH123  # a descriptor
        command = [sys.executable, "-m", "headrace.cli", *arguments]
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, check=False)  # noqa: S603  # our own

    assert (done.returncode, done.stderr) == (0, b"")


def test_a_batch_run_of_a_file_loads_no_library_of_the_spec() -> None:
    code = (
        "import sys, headrace.cli.batch.run\n"
        "loaded = {m.split('.')[0] for m in sys.modules} & {'pydantic', 'ruamel', 'sqlalchemy'}\n"
        "assert not loaded, loaded\n"
    )

    subprocess.run([sys.executable, "-c", code], check=True)  # noqa: S603  # our own interpreter


def test_ctrl_c_during_the_imports_prints_no_traceback() -> None:
    code = """
import sys
class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupting())
from headrace.cli import main
sys.exit(main(["version"]))
"""
    done = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-c", code], capture_output=True, check=False, timeout=60
    )

    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
