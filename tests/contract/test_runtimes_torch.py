"""The runtimes of PyTorch pass the suite that plug-ins have to pass."""

from pathlib import Path

import pytest

from headrace.runtimes import Runtime
from headrace.runtimes.torch.exported import TorchExportRuntime
from headrace.runtimes.torch.torchscript import TorchScriptRuntime
from headrace.testing.contracts import RuntimeContract
from tests import torch_models
from tests.torch_models import FEATURES, Saved, nn, torch

pytestmark = [pytest.mark.torch, pytest.mark.slow]


class Attention(nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """Words with a mask; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        words = self.table(ids) * mask.unsqueeze(-1)
        mean = words.sum(1) / mask.sum(1, keepdim=True)
        return {"scores": self.head(mean), "words": words}


IDS_AND_MASK = {
    "inputs": [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in ("ids", "mask")]
}


class Cumulative(nn.Module):  # type: ignore[misc]  # as above
    """Seems to have a batch, but its axis 0 is time."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 0)


class Drawing(nn.Module):  # type: ignore[misc]  # as above
    """Changes what it is given, and gives a view of it."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x.mul_(2.0)
        return x, x[:, :2]


@pytest.fixture(scope="class")
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(5)
    made: Saved = request.cls.save(tmp_path_factory.mktemp("saved"))
    return made.path


class TorchContract(RuntimeContract):
    made_by: type[Runtime] = TorchScriptRuntime

    @staticmethod
    def save(folder: Path) -> Saved:
        raise NotImplementedError

    @pytest.fixture
    def runtime(self) -> Runtime:
        return self.made_by()

    @pytest.fixture
    def model_path(self, saved: Path) -> Path:
        return saved

    @pytest.fixture
    def broken_path(self, saved: Path, tmp_path: Path) -> Path:
        file = saved / "model.jit" if saved.is_dir() else saved
        path = tmp_path / f"half{file.suffix}"
        data = file.read_bytes()
        path.write_bytes(data[: len(data) // 2])
        return path


class TestScripted(TorchContract):
    @staticmethod
    def save(folder: Path) -> Saved:
        return torch_models.scripted_perceptron(folder)


class TestTraced(TorchContract):
    @staticmethod
    def save(folder: Path) -> Saved:
        return torch_models.traced_perceptron(folder)


class TestScriptedDict(TorchContract):
    variable = 5

    @staticmethod
    def save(folder: Path) -> Saved:
        return torch_models.script(folder / "words.pt", Attention(), IDS_AND_MASK)


class TestScriptedTime(TorchContract):
    @staticmethod
    def save(folder: Path) -> Saved:
        return torch_models.script(folder / "time.pt", Cumulative(), torch_models.SIGNATURE)


class TestScriptedWriter(TorchContract):
    @staticmethod
    def save(folder: Path) -> Saved:
        return torch_models.script(folder / "writer.pt", Drawing(), torch_models.SIGNATURE)


class TestSilero(TorchContract):
    """A published model whose method begins anew; it keeps what it computes with in itself."""

    variable = 700

    @staticmethod
    def save(folder: Path) -> Saved:
        folder = folder / "silero"
        folder.mkdir()
        path = folder / "model.jit"
        path.write_bytes(torch_models.silero().read_bytes())
        (folder / "signature.json").write_text(torch_models.SILERO)
        return Saved(folder, None)


class TestExported(TorchContract):
    made_by = TorchExportRuntime

    @staticmethod
    def save(folder: Path) -> Saved:
        return torch_models.exported_perceptron(folder)


class TestExportedFixed(TestExported):
    @staticmethod
    def save(folder: Path) -> Saved:
        return torch_models.export(
            folder / "fixed.pt2", torch_models.trained(), torch_models.example()
        )


class TestExportedWriter(TestExported):
    @staticmethod
    def save(folder: Path) -> Saved:
        path = folder / "writer.pt2"
        return torch_models.export(
            path, Drawing(), torch.rand(2, FEATURES), **torch_models.by_row()
        )


class TestExportedDict(TestExported):
    variable = 5

    @staticmethod
    def save(folder: Path) -> Saved:
        rows, words = torch.export.Dim("rows"), torch.export.Dim("words")
        ids = torch.ones(3, 4, dtype=torch.int64)
        shapes = {name: {0: rows, 1: words} for name in ("ids", "mask")}
        path = folder / "words.pt2"
        return torch_models.export(path, Attention(), ids, ids, dynamic_shapes=shapes)
