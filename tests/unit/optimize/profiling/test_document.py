"""Profile of a model, and what it fills in of a spec."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import ArtifactCorruptError, FailedPreconditionError, PaddingSpec
from headrace.core.spec.parse import SystemSpec
from headrace.optimize.profiling.document import (
    Machine,
    Profile,
    decode_profile,
    encode_profile,
    file_prefix,
    fill,
    fitting,
    model_of,
)
from headrace.optimize.profiling.messages import Event, ProfileDone, ProfileNote, gathered
from headrace.optimize.profiling.recommend import Requirements
from headrace.runtimes.optimized.file import Processor
from tests.unit.optimize.profiling.made import HERE, cell, measured, profile


def test_a_profile_comes_back_as_it_was_written() -> None:
    assert decode_profile(encode_profile(profile()), location="x") == profile()


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

    old = decode_profile(json.dumps(document).encode(), location="x")

    assert old.measured == profile().measured
    assert old.recommendation.check_s is None


def test_another_processor_or_number_of_cores_is_another_file() -> None:
    other = msgspec.structs.replace(profile(), processor=Processor(name="x", features=("avx2",)))
    more = msgspec.structs.replace(profile(), cores=2)
    later = msgspec.structs.replace(profile(), created_at="2030-01-01T00:00:00+00:00")

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
        decode_profile(data, location="x")


def test_each_length_is_predicted_apart() -> None:
    found = profile(measured(cell(1, 0.010), cell(1, 0.030, length=128), batched=False))

    assert [one.length for one in found.by_length] == [32, 128]
    assert found.by_length[0].capacity == pytest.approx(3 * found.by_length[1].capacity, rel=0.05)
    assert found.prediction.point_near(0.7).p99_s < found.by_length[1].at_70.p99_s


def test_what_a_worker_said_before_it_was_stopped_is_kept() -> None:
    loaded = measured(cell()).loaded
    events: list[Event] = [loaded, cell(), ProfileNote(text="n")]

    found = gathered([*events])

    assert found is not None
    assert len(found.cells) == 1
    assert found.notes == ("n",)
    assert not found.complete
    whole = gathered([*events, ProfileDone()])
    assert whole is not None
    assert whole.complete
    assert gathered([ProfileNote(text="n")]) is None


MACHINE = Machine(processor=HERE, cores=2)
MASKS = PaddingSpec(values={"m": 0.0})


def made() -> Profile:
    return profile(measured(cell(1, 0.010), cell(4, 0.020), padding=MASKS))


def many() -> Profile:
    return profile(requirements=Requirements(rate=1000.0))


def taken(profiles: list[Profile], machine: Machine | None = MACHINE) -> Profile:
    return fitting(profiles, model="m:1", machine=machine, command="headrace profile m:1")


def test_what_the_spec_leaves_open_is_filled_in_and_explained() -> None:
    entry, filled = fill({"name": "a", "model": "m"}, made(), cores=2)

    assert entry["batching"] == {
        "max_batch_size": 32,
        "max_concurrent_runs": 1,
        "max_queue_delay_s": 0.0,
        "intra_op_threads": 1,
        "padding": {"axis": 1, "values": {"m": 0.0}, "max_ratio": 1.41},
    }
    assert {one.path for one in filled} >= {"batching.max_concurrent_runs"}
    assert all(one.why for one in filled)
    SystemSpec.model_validate({"endpoints": [entry]})


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "max_batch_size": st.integers(1, 100),
            "max_concurrent_runs": st.one_of(st.none(), st.integers(1, 8)),
            "intra_op_threads": st.one_of(st.none(), st.integers(1, 8)),
            "max_queue_delay_s": st.floats(0.0, 1.0),
            "padding": st.none(),
            "max_queue_size": st.integers(1, 10),
        },
    )
)
def test_what_is_pinned_always_stays(pinned: dict[str, object]) -> None:
    entry, filled = fill({"name": "a", "model": "m", "batching": pinned}, made(), cores=2)

    assert {name: entry["batching"][name] for name in pinned} == pinned
    assert not {one.path.split(".")[1] for one in filled} & set(pinned)


def test_filling_twice_changes_nothing_more() -> None:
    once, _ = fill({"name": "a", "model": "m"}, made(), cores=2)
    twice, filled = fill(once, made(), cores=2)

    assert twice == once
    assert filled == []


def test_copies_are_as_many_as_wished_and_fit_the_machine() -> None:
    entry, _ = fill({"name": "a", "model": "m"}, many(), cores=4)

    assert (many().recommendation.replicas or 0) > 4
    assert entry["replicas"] == 4


@pytest.mark.parametrize(
    "given_",
    [{"replicas": 1}, {"autoscale": {"max_replicas": 3}}, {"pool": "p"}],
)
def test_copies_that_something_else_decides_are_left_alone(given_: dict[str, object]) -> None:
    entry, filled = fill({"name": "a", "model": "m", **given_}, many(), cores=4)

    assert entry.get("replicas") == given_.get("replicas")
    assert "replicas" not in {one.path for one in filled}


def test_a_pool_keeps_its_threads() -> None:
    entry, _ = fill({"name": "a", "model": "m", "pool": "p"}, made(), cores=2)

    assert "intra_op_threads" not in entry["batching"]


def test_copies_are_left_alone_where_the_machine_is_not_known() -> None:
    entry, _ = fill({"name": "a", "model": "m"}, many(), cores=None)

    assert "replicas" not in entry


def test_a_split_is_tuned_for_the_version_with_the_most_requests() -> None:
    versions = [{"model": "m:1", "weight": 10}, {"model": "m:2", "weight": 90}]

    assert model_of({"versions": versions}) == "m:2"
    assert model_of({"model": "m"}) == "m"
    assert model_of({"upstream": {"url": "http://x"}}) is None
    assert model_of({"versions": [{"upstream": {"url": "http://x"}, "weight": 100}]}) is None


def test_the_newest_profile_of_such_a_machine_is_taken() -> None:
    old = profile(at="2026-01-01T00:00:00+00:00")
    new = profile(at="2026-02-01T00:00:00+00:00")
    large = profile(at="2026-03-01T00:00:00+00:00", cores=8)

    assert taken([new, large, old]) is new


def test_without_a_profile_the_command_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match="create one with: headrace profile m:1"):
        taken([])


def test_a_profile_of_another_processor_is_refused_with_the_difference() -> None:
    other = profile(processor=Processor(name="Old", features=("avx2", "sse4_2")))

    with pytest.raises(FailedPreconditionError) as caught:
        taken([other])

    assert "another processor (Old; no sse4_2 here, no avx512f there)" in str(caught.value)


def test_a_profile_for_more_cores_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match="is for 8 cores, and this machine has 2"):
        taken([profile(cores=8)])


def test_elsewhere_the_newest_is_taken_whatever_the_processor() -> None:
    other = msgspec.structs.replace(profile(), processor=Processor(name="Old", features=()))

    assert taken([other], machine=None) is other
