"""What a member has in hand ascends, so that "done up to here" is never done with more."""

import threading

from hypothesis import given
from hypothesis import strategies as st

from headrace.streaming.brokers.inbox import Inbox, PartitionBuffer
from headrace.streaming.records import Record, TopicPartition

PLACE, OTHER = TopicPartition("t", 0), TopicPartition("u", 0)


def record(offset: int, partition: TopicPartition = PLACE) -> Record:
    return Record(topic_partition=partition, offset=offset, key=None, value=b"%d" % offset)


def offsets(records: list[Record] | None) -> list[int]:
    return [one.offset for one in records or ()]


def test_places_take_turns() -> None:
    inbox: Inbox[str] = Inbox([PLACE, OTHER])
    inbox.offer([(record(n, partition), "") for n in range(4) for partition in (PLACE, OTHER)])

    first = {one.topic_partition for one in inbox.poll(4, 0) or ()}
    second = {one.topic_partition for one in inbox.poll(4, 0) or ()}

    assert first | second == {PLACE, OTHER}
    assert first != second


def test_a_paused_place_is_neither_handed_out_nor_wanted() -> None:
    inbox: Inbox[str] = Inbox([PLACE, OTHER])
    inbox.offer([(record(1), "")])
    inbox.pause([PLACE], is_paused=True)

    assert inbox.poll(10, 0) is None
    assert inbox.open_partitions() == [OTHER]
    inbox.pause([PLACE], is_paused=False)
    assert offsets(inbox.poll(10, 0)) == [1]


def test_a_place_where_an_older_record_waits_its_turn_is_not_read_on() -> None:
    inbox: Inbox[str] = Inbox([PLACE])
    inbox.offer([(record(5), "")])
    inbox.poll(10, 0)
    inbox.offer([(record(2), "")])

    assert inbox.open_partitions() == []
    inbox.acknowledge(PLACE, 6)
    assert inbox.open_partitions() == [PLACE]


def test_a_wake_ends_one_poll_only() -> None:
    inbox: Inbox[str] = Inbox([PLACE])
    inbox.wake()

    assert inbox.poll(1, 60) == []
    assert inbox.poll(1, 0) is None


def test_a_reader_hears_how_much_is_wanted_while_a_poll_waits() -> None:
    inbox: Inbox[str] = Inbox([PLACE])
    heard: list[int] = []

    def read() -> None:
        max_records, _ = inbox.wait_for_demand(10)
        heard.append(max_records)
        inbox.offer([(record(1), "")])

    reader = threading.Thread(target=read)
    reader.start()
    found = inbox.poll(7, 10)
    reader.join()

    assert heard == [7]
    assert offsets(found) == [1]
    assert inbox.wait_for_demand(0)[0] == 0


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("offer"), st.integers(0, 30)),
            st.tuples(st.just("take"), st.integers(0, 5)),
            st.tuples(st.just("done"), st.integers(0, 32)),
        ),
        max_size=60,
    )
)
def test_nothing_is_lost_or_handed_out_twice_and_what_is_in_hand_ascends(
    steps: list[tuple[str, int]],
) -> None:
    """What comes again is acknowledged with its last token, whether it was handed out or not."""
    line: PartitionBuffer[int] = PartitionBuffer()
    tokens: dict[int, int] = {}
    hand: list[int] = []
    finished: set[int] = set()
    for token, (step, number) in enumerate(steps):
        if step == "offer" and number not in finished:
            line.offer(record(number), token)
            tokens[number] = token
        elif step == "take":
            hand += offsets(line.take(number))
        elif step == "done":
            done = [offset for offset in hand if offset < number]
            assert [token for _, token in line.acknowledge(number)] == [tokens[n] for n in done]
            finished |= set(done)
            hand = [offset for offset in hand if offset >= number]
        assert hand == sorted(set(hand))
    while some := offsets(line.take(10)) + [one.offset for one, _ in line.acknowledge(1000)]:
        finished |= set(some)

    assert finished == set(tokens)
    assert line.held == []
