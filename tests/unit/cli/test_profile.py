import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

from headrace.cli.base.offline import HomeModels
from headrace.cli.base.options import numbers, seconds
from headrace.cli.base.plots import draw_profile
from headrace.cli.base.profiles import profile_text, read_profiles, save_profile
from headrace.cli.base.spec_file import tuned
from headrace.core import ArtifactCorruptError, FailedPreconditionError
from headrace.optimize.profiling.document import Profile
from headrace.registry import read_content
from headrace.runtimes.optimized.file import Processor
from headrace.runtimes.optimized.processor import this_processor
from headrace.testing import models
from tests.unit.cli.conftest import Command
from tests.unit.optimize.profiling import made


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.mlp())
    return path


def profile_of(model: Path, processor: Processor | None = None) -> Profile:
    digest = str(read_content(model).digest)
    chosen = processor or this_processor()
    return msgspec.structs.replace(made.profile(), digest=digest, processor=chosen)


def fill(document: dict[str, Any], home: Path) -> tuple[dict[str, Any], list[str]]:
    return tuned(document, home=home, store=HomeModels(home), is_here=True)


@pytest.mark.parametrize(
    ("text", "found"),
    [("50ms", 0.05), ("60s", 60.0), ("5m", 300.0), ("1h", 3600.0), ("0.25", 0.25)],
)
def test_durations_are_read_as_people_write_them(text: str, found: float) -> None:
    assert seconds(text, "--p99") == pytest.approx(found)


@pytest.mark.parametrize("text", ["", "ms", "-1s", "0", "nan", "inf", "1e400", "5 parsecs"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a duration"):
        seconds(text, "--p99")


def test_numbers_keep_their_order_and_are_told_once() -> None:
    assert numbers("64,16, 64", "--lengths") == (64, 16)
    assert numbers("", "--lengths") == ()


@pytest.mark.parametrize("text", ["0", "1,x", "1.5", ",", "9999999999", "1," * 40 + "1"])
def test_numbers_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        numbers(text, "--rows")


def test_a_profile_is_kept_and_found_by_the_content_of_its_model(tmp_path: Path) -> None:
    one = made.profile()
    other = msgspec.structs.replace(one, processor=Processor(name="x", features=()))

    for each in (one, other, one):
        save_profile(tmp_path / "home", each)

    assert len(read_profiles(tmp_path / "home", one.digest)) == 2
    assert read_profiles(tmp_path / "home", "sha256:" + "b" * 64) == []
    assert read_profiles(tmp_path / "nowhere", one.digest) == []


def test_a_damaged_profile_is_named(tmp_path: Path) -> None:
    path = save_profile(tmp_path, made.profile())
    path.write_bytes(b"{")

    with pytest.raises(ArtifactCorruptError, match=path.name):
        read_profiles(tmp_path, made.profile().digest)


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")

    with pytest.raises(FailedPreconditionError, match="cannot be stored"):
        save_profile(tmp_path / "home", made.profile())


def test_a_spec_is_filled_in_from_the_profile_of_its_model(tmp_path: Path, model: Path) -> None:
    save_profile(tmp_path, profile_of(model))
    document = {"version": 1, "endpoints": [{"name": "m", "model": str(model)}]}

    filled, lines = fill(document, tmp_path)

    (entry,) = filled["endpoints"]
    assert entry["batching"]["max_concurrent_runs"] == 1
    assert lines[0].startswith("m: 4 settings from the profile of 2026-11-27T10:00:00+00:00 of ")
    assert any(line.startswith("  batching.max_concurrent_runs = 1: ") for line in lines)
    assert document["endpoints"] == [{"name": "m", "model": str(model)}]


def test_another_servers_endpoint_is_left_as_it_is(tmp_path: Path) -> None:
    entry = {"name": "far", "upstream": {"url": "http://far"}}

    filled, lines = fill({"endpoints": [entry]}, tmp_path)

    assert filled["endpoints"] == [entry]
    assert lines == ["far: external upstream, not changed"]


def test_apply_without_a_profile_names_the_command(
    headrace: Command, model: Path, tmp_path: Path
) -> None:
    spec = tmp_path / "headrace.yaml"
    spec.write_text(f"endpoints: [{{name: m, model: {model}}}]\n")

    outcome = headrace("apply", "-f", spec, "--tuned")

    assert outcome.status != 0
    assert f"create one with: headrace profile {model}" in outcome.err


def test_a_profile_of_another_processor_is_refused_by_up(
    headrace: Command, home: Path, model: Path
) -> None:
    save_profile(home, profile_of(model, Processor(name="Old Chip", features=("sve",))))

    outcome = headrace("up", model, "--tuned", "--detach")

    assert outcome.status != 0
    assert "is of another processor (Old Chip; no sve here" in outcome.err


def test_what_ran_last_cannot_be_tuned(headrace: Command, home: Path) -> None:
    home.mkdir()
    (home / "state.db").touch()

    outcome = headrace("up", "--tuned", "--detach")

    assert outcome.status != 0
    assert "pass a spec or a model" in " ".join(outcome.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--p99", "soon"), "is not a duration"),
        (("--budget", "0"), "is not a duration"),
        (("--rows", "none"), "is not a list of whole numbers"),
        (("--plot", "x.gif"), "use .png, .svg, .pdf"),
        (("--cores", "100000"), "cores of this machine"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_runs(
    headrace: Command, model: Path, options: tuple[str, str], said: str
) -> None:
    outcome = headrace("profile", model, *options)

    assert outcome.status != 0
    assert said in " ".join(outcome.err.replace("│", " ").split())


def test_a_name_that_is_nothing_is_refused(headrace: Command) -> None:
    outcome = headrace("profile", "nothing")

    assert outcome.status == 1
    assert "no file, directory or endpoint 'nothing'" in outcome.err


def test_people_see_the_grid_the_knee_and_what_is_recommended() -> None:
    text = "\n".join(str(part) for part in profile_text(made.profile()))

    assert "capacity of one replica: " in text
    assert "knee: p99 passes " in text
    assert "max_concurrent_runs" in text
    assert "time by operator: not measured" in text
    assert "note: predictions are for requests of one row of length 32" in text


def test_programs_get_the_whole_document() -> None:
    document = json.loads(msgspec.json.encode(made.profile()))

    assert document["prediction"]["capacity"] > 0
    assert {point["load_ratio"] for point in document["prediction"]["curve"]}
    assert document["recommendation"]["max_concurrent_runs"] == 1
    assert document["measured"]["cells"][0]["type"] == "cell"


@pytest.mark.slow
def test_a_profile_is_drawn(tmp_path: Path) -> None:
    draw_profile(tmp_path / "p.svg", made.profile())

    assert (tmp_path / "p.svg").stat().st_size > 10_000
