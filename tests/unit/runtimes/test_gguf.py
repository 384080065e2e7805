"""GGUF files: their facts are read without loading them, and damaged ones are refused."""

import struct
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError, UnsupportedModelError
from headrace.core.settings import LlmSpec, Pooling
from headrace.runtimes import detect_runtime, inspect_model
from headrace.runtimes.file_bytes import BrokenFileError, FileReader
from headrace.runtimes.gguf import GgufModelFiles, find_gguf, read_header
from tests.gguf_models import LLAMA, Value, gguf, smollm2

CONFIG, TEMPLATE = "generation_config.json", "chat_template.jinja"
TENSORS = [("token_embd.weight", (64, 4), 3, bytes(160)), ("norm.weight", (64,), 0, bytes(256))]
"""Of 256 parameters in Q4_1 and 64 in 32 bits."""


def put(path: Path, changes: Mapping[str, Value] | None = None) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gguf({**LLAMA, **(changes or {})}, TENSORS))
    return path


def read(path: Path, changes: Mapping[str, Value] | None = None) -> GgufModelFiles:
    return find_gguf(put(path / "m.gguf", changes))


def test_the_facts_of_a_header_are_read(tmp_path: Path) -> None:
    files = read(tmp_path)

    assert (files.architecture, files.name, files.context_tokens) == ("llama", "Small", 8192)
    assert (files.parameters, files.quantization) == (320, "F32")
    assert files.has_chat_template
    assert files.pooling is None
    assert files.token_bytes == 2 * 2 * (8 + 8) * 2  # layers, heads, key and value, 16 bits
    assert files.weights_bytes == files.path.stat().st_size


def test_smollm2_is_described_as_its_card_does(request: pytest.FixtureRequest) -> None:
    files = find_gguf(smollm2(request))

    assert (files.architecture, files.parameters) == ("llama", 134_515_008)
    assert (files.quantization, files.context_tokens) == ("Q4_1", 8192)
    assert files.token_bytes == 30 * 3 * (64 + 64) * 2
    assert files.has_chat_template


def test_heads_that_differ_between_layers_are_added_up(tmp_path: Path) -> None:
    files = read(tmp_path, {"llama.attention.head_count_kv": [1, 3]})

    assert files.token_bytes == (1 + 3) * 16 * 2


def test_the_length_of_keys_may_be_declared(tmp_path: Path) -> None:
    lengths = {"llama.attention.key_length": 32, "llama.attention.value_length": 16}

    assert read(tmp_path, lengths).token_bytes == 4 * (32 + 16) * 2


@pytest.mark.parametrize(("number", "pooling"), [(1, Pooling.MEAN), (4, Pooling.RANK), (0, None)])
def test_the_pooling_of_an_encoder_is_read(
    tmp_path: Path, number: int, pooling: Pooling | None
) -> None:
    assert read(tmp_path, {"llama.pooling_type": number}).pooling is pooling


def test_the_context_of_a_slot_is_bounded_unless_it_is_set(tmp_path: Path) -> None:
    files = read(tmp_path)

    assert files.context_of(LlmSpec()) == 4096
    assert files.context_of(LlmSpec(context_tokens=8192)) == 8192
    assert read(tmp_path, {"llama.context_length": 512}).context_of(LlmSpec()) == 512
    with pytest.raises(InvalidArgumentError, match=r"9000, but the context of .* is 8192 tokens"):
        files.context_of(LlmSpec(context_tokens=9000))


def test_a_model_that_does_not_fit_is_refused_with_figures(tmp_path: Path) -> None:
    files = read(tmp_path)
    needed = files.memory_bytes(LlmSpec(slots=8, context_tokens=8192))
    assert needed == files.weights_bytes + 8 * 8192 * files.token_bytes

    files.check_memory(LlmSpec(slots=8, context_tokens=8192), needed)
    with pytest.raises(
        UnsupportedModelError,
        match=r"needs 8\.39 MB: .* of weights, and 8\.39 MB for 8 slots of 8192 tokens; 1 MB is "
        r"available: set a lower `llm\.slots`",
    ):
        files.check_memory(LlmSpec(slots=8, context_tokens=8192), 1_000_000)


def test_a_directory_holds_a_model_with_its_adapters(tmp_path: Path) -> None:
    put(tmp_path / "f" / "base.gguf")
    put(tmp_path / "f" / "b.gguf", {"general.type": "adapter"})
    put(tmp_path / "f" / "a.gguf", {"general.type": "adapter"})

    files = find_gguf(tmp_path / "f")

    assert files.path.name == "base.gguf"
    assert [file.name for file in files.adapters] == ["a.gguf", "b.gguf"]
    assert files.facts()["adapters"] == "a.gguf, b.gguf"


def test_a_directory_has_a_template_and_sampling_settings(tmp_path: Path) -> None:
    model = put(tmp_path / "f" / "m.gguf")
    (tmp_path / "f" / "chat_template.jinja").write_text(
        "{% for m in messages %}{%- generation -%}{{ m.content }}{% endgeneration %}{% break %}"
        "{% endfor %}"
    )
    (tmp_path / "f" / "generation_config.json").write_text(
        '{"temperature": 1, "top_p": 0.9, "top_k": 0, "min_p": null, "repetition_penalty": 1.1,'
        '"max_new_tokens": 7, "do_sample": true, "eos_token_id": [2], "transformers_version": "5"}'
    )

    files = find_gguf(tmp_path / "f")

    assert files.chat_template.startswith("{% for m in messages %}{%- generation")
    assert files.facts()["chat_template"] == "chat_template.jinja"
    assert files.facts()["sampling"] == (
        "temperature 1.0, top_p 0.9, top_k 0, repetition_penalty 1.1, max_new_tokens 7"
    )
    alone = find_gguf(model)
    assert not alone.chat_template
    assert alone.facts()["chat_template"] == "yes"
    assert "sampling" not in alone.facts()


def test_a_config_that_does_not_sample_has_a_temperature_of_0(tmp_path: Path) -> None:
    put(tmp_path / "f" / "m.gguf")
    (tmp_path / "f" / "generation_config.json").write_text('{"do_sample": false, "temperature": 1}')

    assert find_gguf(tmp_path / "f").facts()["sampling"] == "temperature 0.0"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (CONFIG, b"", "Input data was truncated; correct it, or remove it"),
        (CONFIG, b"{", "Input data was truncated"),
        (CONFIG, b"[]", "Expected `object`, got `array`"),
        (CONFIG, b'{"temperature": NaN}', "JSON is malformed"),
        (CONFIG, b'{"temperature": 1e999}', "an unknown field or value"),
        (CONFIG, b'{"temperature": -0.1}', r"Expected `float` >= 0.* `\$\.temperature`"),
        (CONFIG, b'{"temperature": "1"}', r"Expected `float \| null`, got `str`"),
        (CONFIG, b'{"top_p": true}', r"Expected `float \| null`, got `bool`"),
        (CONFIG, b'{"top_p": 1.1}', "Expected `float` <= 1.0"),
        (CONFIG, b'{"top_k": 4.5}', r"Expected `int \| null`, got `float`"),
        (CONFIG, b'{"top_k": 4000000000}', "Expected `int` <= 1000000"),
        (CONFIG, b'{"repetition_penalty": 0}', "Expected `float` > 0"),
        (CONFIG, b'{"max_new_tokens": 0}', "Expected `int` >= 1"),
        (CONFIG, b'{"do_sample": 0}', r"Expected `bool \| null`, got `int`"),
        (
            CONFIG,
            b'{"num_beams": 4, "a b": 1, "top_p": 1}',
            r"has the settings \?, num_beams; supported are temperature, top_p, .*; correct it",
        ),
        (CONFIG, b'{"top_p": ' + b"[" * 100_000, "RecursionError"),
        (CONFIG, bytes(1 << 20) + b" ", "larger than the limit of 1048576 bytes"),
        (TEMPLATE, b"a" * (1 << 20) + b" ", "larger than the limit of 1048576 bytes"),
        (TEMPLATE, b"\xff messages", "UnicodeDecodeError at byte 0"),
        (TEMPLATE, b"", "does not use `messages`; correct it, or remove it"),
        (TEMPLATE, b"chatml", "does not use `messages`"),
        (TEMPLATE, b"a\n{% for m in messages %}", "not a Jinja template: .* at line 2; correct it"),
        (TEMPLATE, b"{{ messages | }}", "not a Jinja template: TemplateSyntaxError at line 1"),
        (TEMPLATE, b"{% do messages.pop() %}", "not a Jinja template: TemplateSyntaxError"),
        (TEMPLATE, b"{{ messages[" + b"9" * 5000 + b"] }}", "not a Jinja template: ValueError"),
        (TEMPLATE, b"{{ messages" + b"(" * 100_000, "RecursionError"),
    ],
)
def test_damaged_defaults_are_refused_with_the_file_and_what_to_do(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    put(tmp_path / "f" / "m.gguf")
    (tmp_path / "f" / name).write_bytes(content)

    with pytest.raises(UnsupportedModelError, match=f"f/{name}: .*{reason}"):
        inspect_model(tmp_path / "f")


def test_a_template_is_left_to_llama_cpp_where_jinja_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "f" / "m.gguf")
    (tmp_path / "f" / TEMPLATE).write_text("{{ messages")
    monkeypatch.setitem(sys.modules, "jinja2", None)

    assert find_gguf(tmp_path / "f").chat_template == "{{ messages"


def test_defaults_that_are_not_files_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "f" / "m.gguf")
    (tmp_path / "f" / TEMPLATE).mkdir()

    with pytest.raises(UnsupportedModelError, match=f"{TEMPLATE}: not a regular file; correct it"):
        find_gguf(tmp_path / "f")


def test_the_parts_of_a_model_are_one_model(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    for number in (0, 1):
        name = f"m-0000{number + 1}-of-00002.gguf"
        put(folder / name, {"split.no": number, "split.count": 2})

    files = find_gguf(folder)

    assert files.path.name == "m-00001-of-00002.gguf"
    assert files.parameters == 640
    with pytest.raises(UnsupportedModelError, match="has 1 of the 2 parts of a model"):
        find_gguf(files.path)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a": {}, "b": {}}, r"holds 2 models \(a.gguf, b.gguf\); push one of them"),
        ({"a": {"general.type": "adapter"}}, "is a LoRA adapter without its model"),
        ({"a": {"general.type": "mmproj"}}, "encoder of images of another model"),
        ({"a": {"general.architecture": ""}}, "names no architecture"),
        ({"a": {"llama.block_count": 0}}, "does not declare the layers"),
    ],
)
def test_what_is_not_one_language_model_is_refused(
    tmp_path: Path, files: dict[str, dict[str, Value]], reason: str
) -> None:
    for name, values in files.items():
        put(tmp_path / "f" / f"{name}.gguf", values)

    with pytest.raises(UnsupportedModelError, match=reason):
        find_gguf(tmp_path / "f")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"GGUG" + bytes(20), "is not a GGUF file"),
        (gguf(version=1), "is of GGUF version 1; supported"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), r"declares 1152921504606846976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), r"declares .* keys; the limit"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, (1 << 64) - 1), "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQQII", 3, 0, 1, 0, 13, 0), "unknown type 13"),
        (b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 9, 1), "list of the unknown type 9"),
        (b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 8, 1 << 50), "more than 4000000 strings"),
        (b"GGUF" + struct.pack("<IQQQIIQ", 3, 0, 1, 0, 9, 4, 1 << 50), "truncated or damaged"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 1, 0, 0, 9), "tensor of 9 dimensions"),
        (gguf(LLAMA, TENSORS)[:-300], "ends before its tensors do"),
        (gguf(LLAMA, [("t", (1 << 40, 1 << 40), 0, b"")]), "ends before its tensors do"),
        (gguf(LLAMA)[:-10], "ends before its content does"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)

    with FileReader(tmp_path / "m.gguf") as source, pytest.raises(BrokenFileError, match=reason):
        read_header(source)


@given(st.data())
def test_any_change_of_a_header_gives_facts_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(gguf(LLAMA, TENSORS))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(4, len(content) - 8))
        content[place : place + 8] = data.draw(
            st.binary(min_size=1, max_size=8) | st.integers(0, (1 << 64) - 1).map(_packed)
        )
    file = tmp_path_factory.mktemp("changed") / "m.gguf"
    file.write_bytes(content[: data.draw(st.integers(4, len(content)))])

    try:
        files = find_gguf(file)
    except UnsupportedModelError as error:
        assert str(file) in str(error)  # noqa: PT017  # either is right
    else:
        assert files.memory_bytes(LlmSpec()) >= files.weights_bytes


def _packed(number: int) -> bytes:
    return struct.pack("<Q", number)


def test_a_file_is_inspected_without_the_memory_that_it_needs(tmp_path: Path) -> None:
    path = put(tmp_path / "m.gguf", {"llama.block_count": 4_000_000})

    assert detect_runtime(path).name == "gguf"
    inspected = inspect_model(path)

    assert inspected.runtime == "gguf"
    assert not inspected.runs_code
    assert inspected.signature.inputs == inspected.signature.outputs == ()
    assert inspected.first_run is None
    assert inspected.metadata["memory"] == "4.19 TB with 4 slots of 4096 tokens"
    assert inspected.metadata["context"] == "8192 tokens"
