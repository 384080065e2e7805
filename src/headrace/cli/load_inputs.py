"""What is every request of a load, and does the server take it? Asked once, before the run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from headrace.cli.read_inputs import Inputs, read_file, read_inputs, with_batch_axis
from headrace.client.tensors import to_tensors
from headrace.core import (
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    check_inputs,
    datatype_of,
    example_inputs,
)
from headrace.load import Asker, Target
from headrace.load.target import binary_message, json_message

if TYPE_CHECKING:
    from headrace.core import Array

_MAX_BYTES: Final = 512 << 20
_MAX_MESSAGES: Final = 1_000_000
_SHOWN: Final = 4
_LINES: Final = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was said of the requests.

    Attributes:
        file: Where the inputs are; None makes some up.
        rows: In one request; None for 1, or all of the file.
        size: Of made-up inputs, every other variable axis.
        binary: Whether tensors are sent as bytes.
    """

    file: str | None = None
    rows: int | None = None
    size: int = 1
    binary: bool = False


def ready_target(target: Target, given: Given) -> tuple[Target, str]:
    """`target` with requests that its server has answered once, and what they are in words.

    Raises:
        HeadraceError: The server cannot be reached, has no such model, or refuses the requests.
    """
    with Asker(target) as asker:
        if not target.model:
            target = replace(target, model=asker.only_model())
    with Asker(target) as asker:
        requests = list(tensors_of(asker.signature(), given, target.model))
        make = binary_message if given.binary else json_message
        messages, total = [], 0
        for tensors in requests:
            messages.append(make(target.model, target.version, tensors))
            total += len(messages[-1][1])
            if total > _MAX_BYTES or len(messages) > _MAX_MESSAGES:
                msg = (
                    f"the requests exceed {_MAX_BYTES >> 20} MB or {_MAX_MESSAGES:,}: "
                    "give a smaller file, or fewer rows"
                )
                raise InvalidArgumentError(msg)
        asker.try_out(messages)
    return target.with_messages(messages), _words(requests, messages, given)


def tensors_of(signature: ModelSignature, given: Given, model: str) -> Iterator[Tensors]:
    """The inputs of each request, in turn.

    Raises:
        InvalidArgumentError: The file cannot be read, or does not fit the model.
    """
    if given.file is None:
        yield dict(example_inputs(signature, rows=given.rows or 1, variable=given.size))
        return
    data = read_file(given.file)
    for inputs in _inputs_in(data, given.file, signature):
        tensors = to_tensors(with_batch_axis(inputs, signature), signature)
        check_inputs(model, signature, tensors)
        if given.rows is None or not signature.batched:
            yield tensors
        else:
            yield from _in_rows(tensors, given.rows)


def _inputs_in(data: bytes, file: str, signature: ModelSignature) -> Iterator[Inputs]:
    if not file.endswith(_LINES):
        yield read_inputs(data, signature)
        return
    lines = [(i, line) for i, line in enumerate(data.splitlines(), 1) if line.strip()]
    if not lines:
        msg = f"'{file}' is empty"
        raise InvalidArgumentError(msg)
    for i, line in lines:
        try:
            yield read_inputs(line, signature)
        except InvalidArgumentError as error:
            msg = f"line {i} of '{file}': {error}"
            raise InvalidArgumentError(msg) from None


def _in_rows(tensors: Tensors, rows: int) -> Iterator[Tensors]:
    """Requests of `rows` rows; a rest that is smaller is left out, unless it is all there is."""
    count = min(len(array) for array in tensors.values())
    for begin in range(0, max(count - rows, 0) + 1, rows):
        yield {name: array[begin : begin + rows] for name, array in tensors.items()}


def _words(
    requests: list[Tensors], messages: list[tuple[dict[str, str], bytes]], given: Given
) -> str:
    def one(name: str, array: "Array") -> str:
        return f"{name} {datatype_of(array.dtype)} {list(array.shape)}"

    named = [one(name, array) for name, array in requests[0].items()]
    more = f" and {len(named) - _SHOWN} more" if len(named) > _SHOWN else ""
    origin = "made up" if given.file is None else f"of {given.file}"
    turn = f"{len(messages):,} requests in turn, the first " if len(messages) > 1 else ""
    form = "binary" if given.binary else "JSON"
    size = len(messages[0][1])
    return f"{turn}{', '.join(named[:_SHOWN])}{more}, {origin}, {size:,} bytes of {form}"
