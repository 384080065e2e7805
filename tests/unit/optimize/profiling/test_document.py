import json

import msgspec
import pytest

from headrace.core import ArtifactCorruptError
from headrace.optimize.profiling.document import decode_profile, encode_profile, file_prefix
from headrace.optimize.profiling.messages import Done, Event, Note, gathered
from headrace.runtimes.optimized_file import Processor
from tests.unit.optimize.profiling.made import cell, measured, profile


def test_a_profile_comes_back_as_it_was_written() -> None:
    assert decode_profile(encode_profile(profile()), where="x") == profile()


def test_a_profile_from_before_there_were_rounds_is_still_read() -> None:
    document = json.loads(encode_profile(profile()))
    for one in document["measured"]["cells"]:
        del one["rounds"], one["paused"]
    for point in document["prediction"]["curve"]:
        del point["p99_ci_s"]
    for new in ("capacity_ci", "drift_ratio"):
        del document["prediction"][new]
    for new in ("rate", "p99_ci_s", "check_s"):
        del document["recommendation"][new]

    old = decode_profile(json.dumps(document).encode(), where="x")

    assert old.measured == profile().measured
    assert old.recommendation.check_s is None


def test_another_processor_or_number_of_cores_is_another_file() -> None:
    other = msgspec.structs.replace(profile(), processor=Processor(name="x", features=("avx2",)))
    more = msgspec.structs.replace(profile(), cores=2)
    later = msgspec.structs.replace(profile(), at="2030-01-01T00:00:00+00:00")

    names = {one.file_name for one in (profile(), other, more, later)}

    assert len(names) == 3
    assert all(name.startswith(file_prefix(profile().digest)) for name in names)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "x is damaged"),
        (b'{"schema": 1}', "x is damaged"),
        (b'{"schema": 9}', "a newer Headrace"),
        (b"[]", "x is damaged"),
    ],
)
def test_what_is_no_profile_is_refused_by_its_name(data: bytes, said: str) -> None:
    with pytest.raises(ArtifactCorruptError, match=said):
        decode_profile(data, where="x")


def test_each_length_is_predicted_apart() -> None:
    found = profile(measured(cell(1, 0.010), cell(1, 0.030, length=128), batched=False))

    assert [one.length for one in found.by_length] == [32, 128]
    assert found.by_length[0].capacity == pytest.approx(3 * found.by_length[1].capacity, rel=0.05)
    assert found.prediction.at(0.7).p99_s < found.by_length[1].at_70.p99_s


def test_what_a_worker_said_before_it_was_stopped_is_kept() -> None:
    loaded = measured(cell()).loaded
    events: list[Event] = [loaded, cell(), Note(text="n")]

    found = gathered([*events])

    assert found is not None
    assert len(found.cells) == 1
    assert found.notes == ("n",)
    assert not found.complete
    whole = gathered([*events, Done()])
    assert whole is not None
    assert whole.complete
    assert gathered([Note(text="n")]) is None
