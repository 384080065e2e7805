"""Runs of the documentation: blocks parse, commands run, answers are those printed.

The `sh` and `python` blocks of a page run in their order in an empty folder that holds the
examples' models, with a home of its own and other ports. A block with a title is written to that
file. A `json` block states what the block before it prints; a `text` block too, with `...` for what
varies. A `console` block is not run: it installs packages, or its page is listed in `UNRUN`.
"""

import ast
import doctest
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from headrace.core.spec.parse import SystemSpec, parse_spec
from headrace.features.spec import checked
from headrace.pipeline import parse_spec as parse_pipeline

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
GUIDES = sorted(
    f"docs/how-to/{path.name}"
    for path in (ROOT / "docs/how-to").glob("*.md")
    if path.name != "mlflow.md"  # tests/mlflow runs it, where MLflow is installed
)
ON_DIGITS = (
    "docs/how-to/calls.md",
    "docs/how-to/autoscale.md",
    "docs/how-to/logs.md",
    "docs/how-to/monitor.md",
    "docs/reference/client.md",
)
"""Pages whose blocks expect the digits model to be served; they share a system."""
STORIES = ("README.md", "docs/how-to/python-model.md", "docs/how-to/push-models.md")
RUN_ELSEWHERE = {
    "docs/how-to/first-cluster.md": "test_first_cluster_page.py",
    "docs/how-to/huggingface.md": "test_huggingface_page.py",
    "docs/how-to/language-models.md": "test_language_models_page.py",
    "docs/how-to/model-sources.md": "test_model_sources_page.py",
}
"""Pages that a test of their own runs: with a cluster, PyTorch, servers of models."""
LONG_STORIES = (
    "docs/tutorial.md",
    "docs/explain/scale.md",
    *(page for page in GUIDES if page not in {*ON_DIGITS, *STORIES, *RUN_ELSEWHERE}),
)
"""Pages that are run in a system of their own."""
UNRUN = {
    "docs/how-to/batch.md": "Ray, data sets of your own",
    "docs/how-to/features.md": "a Feast repository, a Hopsworks store",
    "docs/how-to/install.md": "a package index",
    "docs/how-to/kubernetes.md": "a cluster, Docker",
    "docs/how-to/manage-access.md": "an identity provider, a second machine",
    "docs/how-to/other-formats.md": "TensorFlow",
    "docs/how-to/pipelines.md": "a tokenizer, a picture",
    "docs/how-to/production.md": "root, systemd",
    "docs/how-to/several-gateways.md": "a second machine",
    "docs/how-to/shared-storage.md": "an object store, Postgres",
    "docs/how-to/streams.md": "Kafka",
    "docs/how-to/torch-models.md": "PyTorch",
}
"""Pages with commands that need what this machine lacks: their `console` blocks are not run."""
SEPARATOR = "\x1e"
STORY_LIMIT_S = 400
PORTS = {
    8000: "HEADRACE_HTTP_PORT",
    8001: "HEADRACE_GRPC_PORT",
    8002: "HEADRACE_METRICS_PORT",
    8080: "HEADRACE_ADMIN_PORT",
    9099: "",
    9100: "",
}
"""Ports in pages and their variables; free ones replace them. A page starts servers on the last."""

_FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language, the file it is shown as (or nothing), its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in _FENCE.findall(page.read_text())]


def all_blocks(language: str) -> list[Any]:
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{i}")
        for page in PAGES
        for i, block in enumerate(blocks(page))
        if block.language == language
    ]


@pytest.mark.parametrize("block", all_blocks("yaml"))
def test_yaml_blocks_are_specs(block: Block) -> None:
    if block.title == "features.yaml":
        assert checked(block.text).feature_services
        return
    if block.text.startswith("steps:"):
        assert parse_pipeline(block.text).steps
        return
    if block.text.startswith("apiVersion:"):
        assert YAML(typ="safe").load(block.text)["kind"] == "CronJob"
        return
    spec = parse_spec(block.text, base_dir=ROOT, exists=lambda _: True)

    assert isinstance(spec, SystemSpec)


@pytest.mark.parametrize("block", [*all_blocks("python"), *all_blocks("py")])
def test_python_blocks_parse(block: Block) -> None:
    assert ast.parse(block.text).body


@pytest.mark.parametrize("block", all_blocks("json"))
def test_json_blocks_parse(block: Block) -> None:
    assert json.loads(block.text) is not None


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=lambda page: page.name)
def test_links_of_pages_outside_the_docs_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


def console_commands(page: Path) -> list[str]:
    """Lines of the `console` blocks, without those that install packages."""
    lines = [
        line.removeprefix("$ ")
        for block in blocks(page)
        if block.language == "console"
        for line in block.text.splitlines()
    ]
    return [line for line in lines if not line.startswith("pip install")]


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_is_run(name: str) -> None:
    languages = {block.language for block in blocks(ROOT / name)}

    if name in RUN_ELSEWHERE:
        assert (ROOT / "tests/docs" / RUN_ELSEWHERE[name]).is_file()
    elif name in UNRUN:
        assert console_commands(ROOT / name), "it can be run: remove it from UNRUN"
    else:
        assert console_commands(ROOT / name) == []
        assert languages & {"sh", "python"}


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_says_where_its_model_comes_from(name: str) -> None:
    text = (ROOT / name).read_text()

    if "models/digits.onnx" in text or "models/test.npz" in text:
        assert "examples/digits/train.py" in text


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `models` that the pages speak of."""
    folder = tmp_path_factory.mktemp("models")
    train = ROOT / "examples/digits/train.py"
    subprocess.run([sys.executable, train, folder], check=True, capture_output=True)  # noqa: S603  # ours
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize(
    "page", [*STORIES, *(pytest.param(page, marks=pytest.mark.long) for page in LONG_STORIES)]
)
def test_a_page_does_what_it_shows(page: str, models: Path, tmp_path: Path) -> None:
    if page == "docs/how-to/proxy.md" and shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: scripts/setup.sh nginx")
    play(blocks(ROOT / page), models, tmp_path)


@pytest.mark.e2e
def test_pages_about_the_digits_model_do_what_they_show(models: Path, tmp_path: Path) -> None:
    up = Block("sh", "", "headrace up models/digits.onnx --detach >/dev/null\n")
    steps = [block for name in ON_DIGITS for block in blocks(ROOT / name)]

    play([up, *(block for block in steps if block.language != "yaml")], models, tmp_path)


def play(steps: list[Block], models: Path, folder: Path) -> None:
    """Run the blocks in `folder`, compare what they print, and stop whatever runs there."""
    prepare(models, folder)
    ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    user = folder / "user"
    environment = story_environment(ports, user)
    script, expected = compose(steps, ports)
    with (user / "stdout").open("w") as stdout, (user / "stderr").open("w") as stderr:
        shell = subprocess.Popen(  # noqa: S603  # what our own pages show
            ["/bin/bash", "-c", script],
            cwd=folder,
            env=environment,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    status: int | None = None
    try:
        with suppress(subprocess.TimeoutExpired):
            status = shell.wait(STORY_LIMIT_S)
    finally:
        # A page that fails does not end the servers that it started.
        with suppress(ProcessLookupError):
            os.killpg(shell.pid, signal.SIGKILL)
        shell.wait()
        for control in folder.rglob("run/control.json"):
            stop = [str(BIN / "headrace"), "down", "--home", str(control.parents[1])]
            subprocess.run(stop, check=False, capture_output=True, timeout=60)  # noqa: S603  # ours

    output = (user / "stdout").read_text()
    assert status == 0, (status, output[-2000:] + (user / "stderr").read_text()[-4000:])
    printed = output.split(SEPARATOR)
    for index, block in expected:
        assert_prints(block, printed[index])


def compose(steps: list[Block], ports: dict[int, int]) -> tuple[str, list[tuple[int, Block]]]:
    """The blocks as one script, and which of its outputs are stated."""
    script = ["set -euo pipefail"]
    expected = []
    count = 0
    for number, block in enumerate(steps, 1):
        text = with_ports(block.text, ports)
        script.append(f"echo 'block {number}' >&2")
        if block.title:
            # Files come in one piece, whatever characters they hold.
            script.append(f"mkdir -p $(dirname {block.title})")
            script.append(f"cat >{block.title} <<'END-OF-BLOCK'\n{text}END-OF-BLOCK")
        elif block.language == "sh":
            script.append(f"{text}printf '\\036'")
            count += 1
        elif block.language == "python":
            script.append(f"python - <<'END-OF-BLOCK'\n{text}END-OF-BLOCK\nprintf '\\036'")
            count += 1
        elif block.language in {"json", "text"} and count:
            expected.append((count - 1, block))
    return "\n".join(script), expected


def assert_prints(block: Block, printed: str) -> None:
    if block.language == "json":
        assert_alike(json.loads(block.text), json.loads(printed))
    else:
        flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert doctest.OutputChecker().check_output(block.text, printed, flags), printed


def assert_alike(want: object, got: object) -> None:
    """Equal JSON, with the last digits of floats left free."""
    match want, got:
        case dict(), dict():
            assert want.keys() == got.keys()
            for key in want:
                assert_alike(want[key], got[key])
        case list(), list():
            assert len(want) == len(got)
            for mine, theirs in zip(want, got, strict=True):
                assert_alike(mine, theirs)
        case float(), float() | int():
            assert math.isclose(want, got, rel_tol=1e-4, abs_tol=1e-6)
        case _:
            assert want == got


def prepare(models: Path, folder: Path) -> None:
    shutil.copytree(models, folder / "models")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / ".venv").symlink_to(BIN.parent)


def story_environment(ports: dict[int, int], user: Path) -> dict[str, str]:
    """An environment without the user's contexts and settings, and with ports that are free."""
    user.mkdir()
    inherited = {
        key: value for key, value in os.environ.items() if not key.startswith(("HEADRACE_", "XDG_"))
    }
    chosen = {name: str(ports[port]) for port, name in PORTS.items() if name}
    paths = {"HOME": str(user), "PATH": f"{BIN}:{os.environ['PATH']}"}
    return {**inherited, **chosen, **paths, "COLUMNS": "120"}


def with_ports(text: str, ports: dict[int, int]) -> str:
    if not ports:
        return text
    numbers = "|".join(map(str, ports))
    return re.sub(rf"\b({numbers})\b", lambda match: str(ports[int(match[0])]), text)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for listener in sockets:
        listener.bind(("127.0.0.1", 0))
    ports = [int(listener.getsockname()[1]) for listener in sockets]
    for listener in sockets:
        listener.close()
    return ports
