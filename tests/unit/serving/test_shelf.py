"""What waits to be fetched: nothing twice once it arrived, nothing beyond the bounds."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.serving.telemetry.samples import BoundedBuffer


def a_shelf(most_items: int = 10) -> BoundedBuffer[int]:
    return BoundedBuffer(most_items=most_items, most_bytes=100, page_items=4, page_bytes=20)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30))))
def test_what_is_fetched_is_what_was_kept_in_order(steps: list[tuple[bool, int]]) -> None:
    shelf = a_shelf()
    kept: list[int] = []
    fetched: list[int] = []
    cursor = 0
    for i, (adds, size_bytes) in enumerate(steps):
        if adds:
            lost = shelf.dropped
            shelf.add(i, size_bytes)
            kept += [i] if shelf.dropped == lost else []
        else:
            page = shelf.page(cursor)
            assert len(page.items) <= 4
            fetched += page.items
            cursor = page.cursor
    while (page := shelf.page(cursor)).items:
        fetched += page.items
        cursor = page.cursor

    assert fetched == kept
    assert len(kept) + shelf.dropped == sum(adds for adds, _ in steps)


def test_a_page_holds_one_item_however_large() -> None:
    shelf = a_shelf()
    shelf.add(1, 50)
    shelf.add(2, 1)

    assert shelf.page(0).items == [1]


def test_a_cursor_of_another_process_begins_with_what_is_here() -> None:
    shelf = a_shelf()
    shelf.add(1, 1)

    page = shelf.page(1000)

    assert (page.items, page.cursor) == ([1], 1)


def test_what_does_not_fit_is_dropped_and_counted() -> None:
    shelf = a_shelf(most_items=2)
    for i in range(5):
        shelf.add(i, 1)

    assert (shelf.page(0).items, shelf.page(0).dropped) == ([0, 1], 3)
    shelf.page(2)
    shelf.add(9, 1)
    assert shelf.page(2).items == [9]
