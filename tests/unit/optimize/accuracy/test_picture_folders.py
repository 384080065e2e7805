"""A folder for each class is examples for a model that takes pictures, and for no other one."""

from pathlib import Path

import pytest

from headrace.core import Datatype, InvalidArgumentError
from headrace.optimize.accuracy import DataWish, read_labelled
from tests.unit.optimize.accuracy.signatures import MATRIX, of, spec

PICTURES = of(spec("image", -1, datatype=Datatype.BYTES), labels={"logits": ("dog", "cat")})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("cat/1.jpg", "cat/2.PNG", "dog/1.jpg", "dog/notes.txt", "stray.jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def test_folders_are_the_labels_of_their_pictures(folder: Path) -> None:
    found = read_labelled(folder, PICTURES, DataWish(), beside=folder)

    assert [one["image"].tolist() for one in found.inputs] == [
        [b"cat/1.jpg"],
        [b"cat/2.PNG"],
        [b"dog/1.jpg"],
    ]
    assert found.names == ("dog", "cat")
    assert found.labels is not None
    assert found.labels.tolist() == [1, 1, 0]


def test_a_limit_draws_some(folder: Path) -> None:
    found = read_labelled(folder, PICTURES, DataWish(limit=2), beside=folder)

    assert len(found) == 2
    assert found.notes == ("2 of 3 pictures, drawn at random, the same every time",)


def test_a_model_of_tensors_is_told_what_to_give(folder: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"give the tensors that it takes in an \.npz"):
        read_labelled(folder, MATRIX, DataWish(), beside=folder)


def test_a_folder_without_pictures_says_how_they_should_lie(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cat/1\.jpg"):
        read_labelled(tmp_path, PICTURES, DataWish(), beside=tmp_path)
