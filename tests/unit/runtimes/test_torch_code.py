"""Row analysis of TorchScript's code, written by hand: no PyTorch is needed, and nothing runs."""

import pickle  # noqa: TID251  # to prove what is not done with it
import textwrap
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.core import Datatype, TensorSpec
from headrace.runtimes.rows.torch_graph import analyse_torch_graph
from headrace.runtimes.rows.torchscript import analyse_torchscript
from headrace.runtimes.rows.values import RowVerdict

NET = b"\x80\x02c__torch__\nNet\n)\x81}b."
"""A pickled object of the class `__torch__.Net` without attributes."""
INPUTS = {"x": TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 4))}


def verdict(folder: Path, body: str, data: bytes = NET, more: str = "") -> RowVerdict:
    """The verdict on a module whose `forward` has this body."""
    forward = textwrap.indent(textwrap.dedent(body).strip(), "    ")
    head = f"class Net(Module):\n{more}  def forward(self: __torch__.Net, x: Tensor) -> Tensor:"
    code = f"{head}\n{forward}\n"
    path = folder / "net.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", data)
        archive.writestr("net/code/__torch__.py", code)
        archive.writestr("net/constants.pkl", b"\x80\x02).")
    return analyse_torchscript(path, "forward", INPUTS, {})


@pytest.mark.parametrize(
    "body",
    [
        "return torch.relu(x)",
        """
        y = x
        for i in range(3):
          y = torch.mul(y, 2)
        return y
        """,
        """
        if torch.gt(torch.size(x, 0), 1024):
          ops.prim.RaiseException("too many rows")
        else:
          pass
        return torch.tanh(x)
        """,
        """
        if torch.eq(torch.dim(x), 2):
          y = torch.unsqueeze(x, 1)
        else:
          y = torch.flip(x, [0])
        return torch.softmax(y, -1)
        """,
        """
        i = torch.to(torch.arange(torch.size(x, 0), dtype=3), 4)
        return torch.index(x, [i])
        """,
    ],
)
def test_code_that_keeps_rows_apart_is_proven(tmp_path: Path, body: str) -> None:
    assert verdict(tmp_path, body).why_not == ""


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("return torch.sort(x, 0)", "torch.sort sorts along the batch axis"),
        ("return torch.mystery(x)", "torch.mystery is an operator that is not known"),
        (
            """
            y = torch.mul(x, 2)
            _0 = torch.mystery_(y)
            return y
            """,
            "torch.mystery_ is an operator that is not known",
        ),
        (
            """
            if bool(torch.gt(torch.max(x), 1.)):
              y = torch.div(x, 255)
            else:
              y = x
            return y
            """,
            "reduces along the batch axis",
        ),
        (
            """
            if torch.gt(torch.size(x, 0), 8):
              y = torch.mul(x, 2)
            else:
              y = x
            return y
            """,
            "branches on values or the number of all rows",
        ),
        (
            """
            y = x
            for i in range(torch.size(x, 0)):
              y = torch.mul(y, 2)
            return y
            """,
            "repeats a loop on values or the number of all rows",
        ),
        (
            """
            while True:
              pass
            return x
            """,
            "steps",
        ),
        (
            """
            self.last = x
            return x
            """,
            "changes itself",
        ),
        (
            """
            i = torch.arange(torch.size(x, 0), dtype=0)
            return torch.index(x, [torch.to(i, 4)])
            """,
            "numbers the rows of the batch",
        ),
        (
            """
            i = torch.to(torch.arange(torch.size(x, 0), dtype=4), 0)
            return torch.index(x, [torch.to(i, 4)])
            """,
            "numbers the rows of the batch",
        ),
        ("return ops.custom.blend(x)", "ops.custom.blend, which is not known"),
        ("return (self).other(x, )", "'other' of __torch__.Net is not in the code"),
        ("return __import__('os').getcwd()", "is not known to keep rows apart"),
        ("return [y for y in x]", "ListComp is not followed"),
        ("return 3", "gives what is no tensor"),
        ("return torch.mul(x, 2", "SyntaxError"),
    ],
)
def test_code_that_may_mix_rows_or_is_not_followed_is_unproven(
    tmp_path: Path, body: str, reason: str
) -> None:
    assert reason in verdict(tmp_path, body).why_not


def test_hooks_are_not_followed(tmp_path: Path) -> None:
    hooks = '  __forward_hooks__ = ["mixes", ]\n'

    assert "hooks" in verdict(tmp_path, "return x", more=hooks).why_not


def test_reading_a_module_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    found = verdict(tmp_path, "return x", data=pickle.dumps(Evil(), protocol=2))

    assert "cannot be read" in found.why_not
    assert not (tmp_path / "ran").exists()


@given(st.binary(max_size=200))
@settings(max_examples=50)
def test_damaged_graphs_are_unproven(data: bytes) -> None:
    assert analyse_torch_graph(data).why_not
