"""Places are paused once nothing was taken for a while, and resumed as soon as something may be."""

from headrace.streaming.pump import HOLD_AFTER_S, Holding
from headrace.streaming.records import Place

A, B = Place("in", 0), Place("in", 1)


def change(
    holding: Holding, now: float, *, has_room: bool, is_paused: bool = False
) -> tuple[list[Place], list[Place]]:
    return holding.change({A, B}, has_room=has_room, is_paused=is_paused, now=now)


def test_what_is_full_for_a_moment_is_not_paused() -> None:
    holding = Holding()

    assert change(holding, 1.0, has_room=False) == ([], [])
    assert holding.due_at() == 1.0 + HOLD_AFTER_S
    assert change(holding, 1.05, has_room=True) == ([], [])
    assert holding.due_at() is None
    assert change(holding, 1.0 + HOLD_AFTER_S, has_room=False) == ([], [])


def test_what_stays_full_is_paused_once_and_resumed_once() -> None:
    holding = Holding()
    change(holding, 1.0, has_room=False)

    assert change(holding, 1.0 + HOLD_AFTER_S, has_room=False) == ([A, B], [])
    assert change(holding, 2.0, has_room=False) == ([], [])
    assert change(holding, 3.0, has_room=True) == ([], [A, B])
    assert change(holding, 4.0, has_room=True) == ([], [])


def test_who_is_told_to_pause_does_so_at_once() -> None:
    assert change(Holding(), 1.0, has_room=False, is_paused=True) == ([A, B], [])


def test_a_place_that_comes_back_is_told_again_either_way() -> None:
    holding = Holding()
    change(holding, 1.0, has_room=False, is_paused=True)
    holding.gone([A])
    holding.gained([A])
    again = change(holding, 2.0, has_room=False, is_paused=True)
    holding.gone([B])
    holding.gained([B])
    resumed = change(holding, 3.0, has_room=True)

    assert again == ([A], [])
    assert resumed == ([], [A, B])
