"""A chain of entries shows what was done to it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.model.audit_log import Broken, Entry, Head, Verifier, chained, missed


def chain(count: int) -> list[Entry]:
    entries: list[Entry] = []
    for number in range(1, count + 1):
        entry = Entry(
            id=number,
            at=1764000000.25 + number,
            actor="ann",
            action="endpoint.put",
            object=f"m{number}",
            before="null",
            after='{"a":"ü"}',
            previous=entries[-1].hash if entries else "",
            hash="",
        )
        entries.append(chained(entry))
    return entries


def test_a_hash_is_what_others_compute_too() -> None:
    # printf '%s' '[1,1764000001250000,"ann","endpoint.put","m1","null","{\"a\":\"ü\"}",""]' |
    #   sha256sum
    assert chain(1)[0].hash == ("c61fdf3f22bcc5211287e471291442c7094dc4f4613a270b84b11634d784fcb4")


def test_a_whole_chain_is_read_in_parts() -> None:
    entries = chain(5)
    verifier = Verifier()

    assert verifier.read(entries[:2]) is verifier.read(entries[2:]) is None
    assert verifier.head == Head(count=5, hash=entries[-1].hash)


changes = st.sampled_from(
    ["at", "actor", "action", "object", "before", "after", "previous", "hash"]
)


@given(st.integers(0, 4), changes)
def test_whatever_is_changed_the_first_wrong_entry_is_told(index: int, field: str) -> None:
    entries = chain(5)
    value: object = 5.0 if field == "at" else "x"
    entries[index] = msgspec.structs.replace(entries[index], **{field: value})
    broken = Verifier().read(entries)

    assert broken is not None
    assert broken.id == index + 1


@given(st.integers(0, 3))
def test_an_entry_made_anew_breaks_the_next_one(index: int) -> None:
    entries = chain(5)
    entries[index] = chained(msgspec.structs.replace(entries[index], actor="eve"))

    assert Verifier().read(entries) == Broken(
        id=index + 2, reason="it does not follow the entry before it"
    )


@given(st.integers(0, 3))
def test_a_removed_entry_is_missed(index: int) -> None:
    entries = chain(5)
    del entries[index]

    assert Verifier().read(entries) == Broken(id=index + 1, reason="it is missing")


def test_two_entries_swapped_are_found() -> None:
    entries = chain(3)

    assert Verifier().read([entries[1], entries[0], entries[2]]) == Broken(
        id=1, reason="it is missing"
    )


@pytest.mark.parametrize(
    ("there", "reason"),
    [("h", None), (None, "the trail ends before it"), ("other", "its hash differs")],
)
def test_a_checkpoint_finds_out_what_a_chain_cannot(there: str | None, reason: str | None) -> None:
    broken = missed(Head(count=3, hash="h"), hash_there=there)

    assert (broken is None) == (reason is None)
    assert reason is None or (broken is not None and reason in broken.reason)
    assert missed(Head(), hash_there=None) is None
