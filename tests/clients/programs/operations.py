"""Operations of one client: each is a function that fails if the client gets a wrong answer.

A program `python -m tests.clients.programs.NAME URL KEY MODEL [RANKER]` runs its operations and
writes a line of JSON for each: its name, and why it failed.
"""

import json
import sys
import traceback
from collections.abc import Callable
from typing import Final

URL, KEY, MODEL, RANKER = (*sys.argv[1:5], *([""] * (5 - len(sys.argv))))[:4]
"""The gateway, an API key, and endpoints for chats and for ranking."""
IS_STUB: Final = MODEL == "stub"
QUESTION: Final = "What is the capital of France? Answer in one sentence."
MESSAGES: Final = [{"role": "user", "content": QUESTION}]
CITY: Final = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "large": {"type": "boolean"}},
    "required": ["city", "large"],
    "additionalProperties": False,
}
FUNCTION: Final = {
    "name": "weather",
    "description": "The weather in a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
    },
}
TOOL: Final = {"type": "function", "function": FUNCTION}
OPERATIONS: Final[dict[str, Callable[[], object]]] = {}


def operation(name: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """Register a function as the operation of this name."""

    def register(function: Callable[[], object]) -> Callable[[], object]:
        OPERATIONS[name] = function
        return function

    return register


def run() -> None:
    """Run all operations, and write what came of each."""
    for name, function in OPERATIONS.items():
        error = ""
        try:
            function()
        except Exception:  # noqa: BLE001  # reported: it fails the operation's own test
            error = traceback.format_exc()
        sys.stdout.write(json.dumps({"operation": name, "error": error}) + "\n")
        sys.stdout.flush()


def answers(text: str | None) -> None:
    """Check that a model has answered: SmolLM2 knows the city, the stub says what it says."""
    assert text, "there is no text"
    assert IS_STUB or "Paris" in text, text


def refusal(ask: Callable[[], object], kind: str) -> Exception:
    """Return the error of a call; it fails if there is none, or none of the class `kind`."""
    try:
        ask()
    except Exception as error:
        if kind not in [one.__name__ for one in type(error).__mro__]:
            raise
        return error
    raise AssertionError("the request is accepted")


def is_city(text: str) -> None:
    """Check that a text follows the schema `CITY`."""
    document = json.loads(text)
    assert document.keys() == {"city", "large"}, document
    assert isinstance(document["large"], bool)
