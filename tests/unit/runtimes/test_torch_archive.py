"""What a PyTorch file holds is told without PyTorch, and what it needs is said where it is not."""

import pickle  # noqa: TID251  # to prove what is not done with it
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from headrace.core import (
    CodeNotAllowedError,
    FailedPreconditionError,
    UnsupportedModelError,
)
from headrace.runtimes import detect_runtime, inspect_model
from headrace.runtimes.torch.archive import (
    ArchiveKind,
    Traced,
    check_records,
    find_torch_file,
    read_record,
    read_sizes,
    read_traced,
    require_torch_file,
)

SCRIPT: Mapping[str, bytes] = {
    "net/data.pkl": b"\x80\x02N.",
    "net/code/__torch__.py": b"def forward(self, x: Tensor) -> Tensor:\n  return x\n",
    "net/constants.pkl": b"\x80\x02).",
}
PROGRAM: Mapping[str, bytes] = {"net/archive_format": b"pt2", "net/models/model.json": b"{}"}
CHECKPOINT: Mapping[str, bytes] = {"net/data.pkl": b"\x80\x02N.", "net/data/0": b"1234"}
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK"
"""A pickled reference to the record `data/0`; the number of elements follows."""


def archive(path: Path, records: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in records.items():
            opened.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["net.pt", "net.pth", "net.jit", "net.bin", "net"])
def test_torchscript_is_known_by_what_is_in_it(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / name, SCRIPT)

    assert detect_runtime(path).name == "torchscript"
    assert find_torch_file(tmp_path, ArchiveKind.SCRIPT) == path
    assert find_torch_file(tmp_path, ArchiveKind.PROGRAM) is None


def test_programs_are_known_by_what_is_in_them(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.pt2", PROGRAM)
    old = archive(tmp_path / "old.zip", {"serialized_exported_program.json": b"{}"})

    assert detect_runtime(path).name == "torch_export"
    assert detect_runtime(old).name == "torch_export"
    assert find_torch_file(tmp_path, ArchiveKind.PROGRAM) is None, "there are two"


@pytest.mark.parametrize("suffix", [".pt", ".pt2", ".onnx"])
def test_half_an_archive_is_known_by_its_name(tmp_path: Path, suffix: str) -> None:
    data = archive(tmp_path / "whole.pt", SCRIPT).read_bytes()
    path = tmp_path / f"half{suffix}"
    path.write_bytes(data[: len(data) // 2])
    kind = {".pt": ArchiveKind.SCRIPT, ".pt2": ArchiveKind.PROGRAM}.get(suffix)

    for one in ArchiveKind:
        assert (find_torch_file(path, one) is not None) == (one is kind)
    with pytest.raises(UnsupportedModelError, match=r"half.* is truncated or corrupt"):
        read_sizes(path)


def test_a_checkpoint_is_neither(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.pt", CHECKPOINT)

    with pytest.raises(UnsupportedModelError, match="a PyTorch archive with a pickle in it"):
        require_torch_file(path, ArchiveKind.SCRIPT)
    with pytest.raises(UnsupportedModelError, match=r"or save it with torch\.export\.save"):
        detect_runtime(path)


def test_other_archives_and_missing_files_are_told_apart(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.zip", {"a.txt": b"a"})

    with pytest.raises(UnsupportedModelError, match=r"was not written by torch\.export\.save"):
        require_torch_file(path, ArchiveKind.PROGRAM)
    with pytest.raises(UnsupportedModelError, match="exactly one file that"):
        require_torch_file(tmp_path, ArchiveKind.PROGRAM)
    with pytest.raises(UnsupportedModelError, match="no such file"):
        require_torch_file(tmp_path / "none", ArchiveKind.SCRIPT)


@pytest.mark.parametrize(("records", "name"), [(SCRIPT, "net.pt"), (PROGRAM, "net.pt2")])
def test_without_pytorch_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: Mapping[str, bytes], name: str
) -> None:
    path = archive(tmp_path / name, records)
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed

    with pytest.raises(CodeNotAllowedError):
        inspect_model(path)
    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[torch\]'"):
        inspect_model(path, allow_code=True)


def test_an_archive_may_not_unpack_to_far_more_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("net/data/0", bytes(65 << 20))

    with pytest.raises(UnsupportedModelError, match="would unpack to 68157440; "):
        read_sizes(path)


def test_weights_are_as_long_as_the_module_needs_them(tmp_path: Path) -> None:
    needs = {"net/data.pkl": b"\x80\x02" + STORAGE + b"\x03tQ."}
    fits = archive(tmp_path / "fits.pt", {**SCRIPT, **needs, "net/data/0": bytes(12)})
    short = archive(tmp_path / "short.pt", {**SCRIPT, **needs, "net/data/0": bytes(11)})

    check_records(fits)
    with pytest.raises(
        UnsupportedModelError, match="'data/0' has 11 of the 12 bytes that it needs"
    ):
        check_records(short)


@pytest.mark.parametrize(
    "data", [b"", b"\x80\x02", b"\x80\x02(", b"\x80\x02K\x01Q.", b"not a pickle"]
)
def test_a_damaged_list_of_weights_is_refused(tmp_path: Path, data: bytes) -> None:
    path = archive(tmp_path / "net.pt", {**SCRIPT, "net/data.pkl": data})

    with pytest.raises(UnsupportedModelError, match=r"is truncated or corrupt: 'data\.pkl'"):
        check_records(path)


def test_looking_for_weights_runs_no_code(tmp_path: Path) -> None:
    target = tmp_path / "written"
    line = f"open({str(target)!r}, 'w').close()".encode()
    path = archive(
        tmp_path / "net.pt", {**SCRIPT, "net/data.pkl": b"cbuiltins\nexec\n(V" + line + b"\ntR."}
    )

    check_records(path)
    was_written = target.exists()
    pickle.loads(read_record(path, "data.pkl") or b"")  # noqa: S301  # it would have

    assert not was_written
    assert target.exists()


def test_looking_at_traced_inputs_runs_no_code(tmp_path: Path) -> None:
    target = tmp_path / "written"
    line = f"open({str(target)!r}, 'w').close()".encode()
    data = b"cbuiltins\nexec\n(V" + line + b"\ntR."
    path = archive(tmp_path / "net.pt", {**SCRIPT, "net/traced_inputs.pkl": data})

    assert read_traced(path) == {}
    assert not target.exists()


def test_traced_inputs_tell_datatype_and_shape(tmp_path: Path) -> None:
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE
        + b"\x08tQK\x00(K\x02K\x04t(K\x04K\x01t\x89ccollections\nOrderedDict\n)RtR"
    )
    data = b"\x80\x02}X\x07\x00\x00\x00forward](" + tensor + b"K\x05es."
    path = archive(tmp_path / "net.pt", {**SCRIPT, "net/traced_inputs.pkl": data})

    assert read_traced(path) == {"forward": [Traced("FloatStorage", (2, 4)), None]}
    assert read_traced(archive(tmp_path / "scripted.pt", SCRIPT)) == {}


def test_records_are_found_and_bounded(tmp_path: Path) -> None:
    path = archive(tmp_path / "net.pt", {**SCRIPT, "net/extra/a": bytes(100)})

    assert read_record(path, "extra/a") == bytes(100)
    assert read_record(path, "extra/b") is None
    with pytest.raises(UnsupportedModelError, match="'extra/a' has more than 99 bytes"):
        read_record(path, "extra/a", maximum=99)
