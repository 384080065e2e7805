"""Windows that cannot work are refused, each with its place and the way out."""

import msgspec
import pytest

from headrace.core import Datatype, InvalidArgumentError, ReplicaSettings
from headrace.core.spec.stream_parts import (
    FailurePolicy,
    FormatKind,
    Function,
    StreamFormatSpec,
    StreamOutputSpec,
    StreamWindowSpec,
    StreamWindowsSpec,
)
from headrace.streaming.codecs import make_codec
from headrace.streaming.settings import WorkerSettings, check_settings
from headrace.streaming.windows.state_file import state_folder
from tests.unit.streaming import world
from tests.unit.streaming.parts import scorer, signature, spec

ONE = StreamWindowSpec(name="n", size_s=60, slide_s=10)


def settings(*windows: StreamWindowSpec, kind: FormatKind = FormatKind.JSON) -> WorkerSettings:
    return world.settings(
        group="g",
        home="/home/x",
        model=ReplicaSettings(model_name="m", model_version="1", path="m.onnx"),
        format=StreamFormatSpec(kind=kind, columns={"x": ["a", "n"]}),
        output=StreamOutputSpec(),
        windows=StreamWindowsSpec(windows=list(windows)),
    )


def test_settings_that_know_no_windows_are_read_as_before() -> None:
    text = b'{"name":"s","broker":"log:x","topics":["in"],"sink":"out","group":"g","member":"m"}'
    found = msgspec.json.decode(text, type=WorkerSettings)

    assert (found.windows, found.features) == (None, None)
    assert found.errors.policy is FailurePolicy.DEAD_LETTER


@pytest.mark.parametrize("kind", [FormatKind.RAW, FormatKind.OPEN_INFERENCE])
def test_formats_without_fields_have_no_windows(kind: FormatKind) -> None:
    with pytest.raises(InvalidArgumentError, match=f"the format {kind} has none"):
        check_settings(settings(ONE, kind=kind))


@pytest.mark.parametrize(
    ("datatype", "function", "fits"),
    [
        (Datatype.FP32, Function.SUM, True),
        (Datatype.INT64, Function.COUNT, True),
        (Datatype.INT64, Function.SUM, False),
        (Datatype.BOOL, Function.COUNT, False),
        (Datatype.BYTES, Function.COUNT, False),
    ],
)
def test_an_input_has_to_be_able_to_take_a_window(
    datatype: Datatype,
    function: Function,
    fits: bool,  # noqa: FBT001  # a case
) -> None:
    window = StreamWindowSpec(name="n", size_s=60, function=function, field="v")
    of = scorer(signature(spec("x", datatype, -1, 2)))
    if fits:
        make_codec(settings(window), of)
        return
    with pytest.raises(InvalidArgumentError, match=f"window 'n' is a {function}"):
        make_codec(settings(window), of)


def test_streams_and_groups_have_folders_of_their_own() -> None:
    one = settings(ONE)
    others = [
        msgspec.structs.replace(one, group=".."),
        msgspec.structs.replace(one, name=".."),
        msgspec.structs.replace(one, group="a/b"),
        msgspec.structs.replace(one, windows=StreamWindowsSpec(windows=[ONE], state="/state")),
    ]
    found = [str(state_folder(told)) for told in (one, *others)]

    assert found[0] == "/home/x/stream-state/s/g"
    assert found[1] == "/home/x/stream-state/s/%2E%2E"
    assert found[3] == "/home/x/stream-state/s/a%2Fb"
    assert found[4] == "/state/s/g"
    assert len(set(found)) == 5
