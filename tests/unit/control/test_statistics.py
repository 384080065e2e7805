"""Counters add up; names do not."""

from headrace.control.plane.metrics import Json, merge_model_stats


def row(version: str, count: int, *, last: int, batches: dict[int, int]) -> Json:
    return {
        "name": "m",
        "version": version,
        "last_inference": last,
        "inference_count": count,
        "inference_stats": {"success": {"count": count, "ns": count * 10}},
        "batch_stats": [
            {"batch_size": size, "compute_infer": {"count": n, "ns": n}}
            for size, n in batches.items()
        ],
    }


def test_replicas_of_one_version_are_added_up() -> None:
    merged = merge_model_stats(
        [
            {"model_stats": [row("1", 3, last=50, batches={1: 2, 4: 1})]},
            {"model_stats": [row("1", 4, last=90, batches={1: 1, 8: 1})]},
            {"model_stats": [row("2", 1, last=7, batches={})]},
        ]
    )

    assert merged == [
        row("1", 7, last=90, batches={1: 3, 4: 1, 8: 1}),
        row("2", 1, last=7, batches={}),
    ]


def test_answers_that_are_none_are_left_out() -> None:
    answers: list[Json] = [None, [], "x", {"model_stats": 3}, {"model_stats": [4, None]}]

    assert merge_model_stats(answers) == []


def test_fields_that_one_replica_lacks_are_kept() -> None:
    merged = merge_model_stats(
        [
            {"model_stats": [{"name": "m", "version": "1", "flag": True}]},
            {"model_stats": [{"name": "m", "version": "1", "extra": {"count": 1}}]},
        ]
    )

    assert merged == [{"name": "m", "version": "1", "flag": True, "extra": {"count": 1}}]
