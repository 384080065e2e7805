"""The command `llm`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.clients.programs.operations import (
    CITY,
    KEY,
    MODEL,
    QUESTION,
    URL,
    answers,
    is_city,
    operation,
    refusal,
    run,
)

FOLDER = tempfile.mkdtemp(prefix="hr-llm-")
MODELS = [
    {
        "model_id": "gateway",
        "model_name": MODEL,
        "api_base": f"{URL}/v1",
        "api_key_name": "gateway",
        "supports_schema": True,
        "supports_tools": True,
    }
]


def llm(*arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run(
        [Path(sys.executable).parent / "llm", *arguments],
        env={**os.environ, "LLM_USER_PATH": FOLDER},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def prompt(*arguments: str) -> str:
    """What it prints for the question."""
    options = ("-o", "max_tokens", "48", "-o", "temperature", "0")
    return llm("prompt", "-m", "gateway", *options, *arguments, QUESTION)


@operation("chat")
def chat() -> None:
    answers(prompt("--no-stream"))


@operation("stream")
def stream() -> None:
    answers(prompt())


@operation("tools")
def tools() -> None:
    code = 'def weather(city: str) -> str:\n    "The weather in a city."\n    return "sunny"\n'
    assert prompt("--no-stream", "--functions", code)


@operation("JSON schema")
def json_schema() -> None:
    is_city(prompt("--no-stream", "--schema", json.dumps(CITY)))


@operation("errors")
def errors() -> None:
    assert "401" in str(refusal(lambda: prompt("--key", "hr_wrong"), "AssertionError"))


Path(FOLDER, "extra-openai-models.yaml").write_text(json.dumps(MODELS))
Path(FOLDER, "keys.json").write_text(json.dumps({"gateway": KEY}))
run()
