from headrace.observe import BatchStatistics, Duration, ModelStatistics


def test_a_duration_adds_up() -> None:
    duration = Duration()
    duration.add(5)
    duration.add(10, count=3)

    assert duration == Duration(count=4, ns=15)


def test_two_models_share_no_counters() -> None:
    one, other = ModelStatistics(name="a", version="1"), ModelStatistics(name="b", version="1")
    one.success.add(1)
    one.failures["OTHER"] += 1
    one.batches[4] = BatchStatistics()

    assert (other.success.count, other.failures["OTHER"], other.batches) == (0, 0, {})
