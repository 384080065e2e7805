from tests.chaos.ledger import KEYS, Counts, Ledger


def test_a_ledger_counts_what_is_missing_doubled_late_and_out_of_order() -> None:
    ledger = Ledger(opened_at=100.0)
    ledger.written = {0: (0, 101.0), KEYS: (0, 101.0), 1: (1, 102.0), 2: (1, 103.0)}
    ledger.answers = [(KEYS, 102.0), (0, 104.0), (0, 104.5), (1, 102.5)]

    # 2 has no answer, 0 has two and comes after a later record of its key.
    assert ledger.counts(now=110.0) == Counts(
        written=4,
        answers=4,
        lost=1,
        twice=1,
        disordered=1,
        longest_still_s=7.0,
        still_at_s=3.0,
    )
    assert ledger.left() == 1


def test_a_partition_without_waiting_records_does_not_stand_still() -> None:
    ledger = Ledger(opened_at=0.0)
    ledger.written = {0: (0, 1.0), 1: (0, 50.0), 2: (0, 60.0)}
    ledger.answers = [(0, 2.0), (1, 51.0), (2, 64.0)]

    assert ledger.counts(now=70.0).longest_still_s == 4.0
