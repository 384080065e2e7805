"""Report at a terminal: figures and sentences."""

import msgspec
import pytest
from msgspec.structs import replace

from headrace.core.text import printable
from headrace.optimize.report import (
    CandidateReport,
    OptimizeReport,
    QualityEvidence,
    text,
    text_report,
)
from tests.unit.optimize.report.reports import BASELINE, REPORT, passed


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_baseline_comes_first_and_the_chosen_one_is_marked() -> None:
    lines = text_report(REPORT).splitlines()
    head = next(i for i, line in enumerate(lines) if "candidate" in line)

    assert "onnxruntime-fp32" in lines[head + 1]
    assert "baseline" in lines[head + 1]
    chosen = [line for line in lines if line.startswith("▸")]
    assert [" ".join(line.split()) for line in chosen] == [
        "▸ openvino-int8 4.71 ms [4.66, 4.8] 67.8 % [67.5, 68.1] 88.49 % -0.04 [-0.41, 0.33]"
    ]


def test_it_fits_a_hundred_columns() -> None:
    assert max(map(len, text_report(REPORT).splitlines())) <= 100


def test_long_names_do_not_break_the_table() -> None:
    long = replace(REPORT.candidates[0], name="x" * 200)

    text = text_report(replace(REPORT, candidates=[long]))

    assert max(map(len, text.splitlines())) <= 100
    assert "x" * 20 in text
    assert "x…" in text


def test_the_rejected_have_their_reason_and_what_was_measured() -> None:
    text = flat(text_report(REPORT))

    assert (
        "openvino-int8-no-model-type: 4.6 ms, 68.6 % less time, accuracy 70.85 %; loses 17.6"
    ) in text
    assert "tensorrt-fp16: there is no GPU" in text


def test_a_rejected_one_that_is_slower_takes_more_time() -> None:
    slow = passed("dynamic", 3.4 * 14.64e-3, 0.88, 1, reason="it is slower than the baseline")

    text = flat(text_report(replace(REPORT, rejected=[slow])))

    assert "dynamic: 49.8 ms, 240 % more time, accuracy 88.00 %; it is slower" in text


def test_sentences_name_gain_baseline_confidence_processor_and_price() -> None:
    text = flat(text_report(REPORT))

    for said in (
        "openvino-int8 takes 67.8 % [67.5, 68.1] less time than onnxruntime-fp32.",
        "(1 thread, batch 1, length 128, one request at a time, hot caches)",
        "Brackets are 95 % intervals, by 20 blocks of turns.",
        "With cold caches it takes 62.1 % [61.2, 62.9] less time.",
        "Against torch-eager (31.5 ms) it takes 85 % less time.",
        "On 2,693 labelled examples its accuracy is 88.49 %, the baseline's 88.45 %",
        "12 answers lost and 13 gained (p = 1)",
        "The examples detect a loss of 0.46 points or more; the limit was 1 point.",
        "The figures hold for AMD EPYC 9V45 (avx2, avx512_bf16, avx512_vnni, avx_vnni)",
    ):
        assert said in text


def test_without_labels_it_says_fidelity_only_and_why_that_is_weaker() -> None:
    text = flat(text_report(replace(REPORT, data=QualityEvidence())))

    assert "Fidelity only: it gives the baseline's answer in 99.1 % of the examples." in text
    assert "Without labels, the loss of accuracy cannot be measured" in text
    assert "accuracy 70.85" not in text
    assert "agreement" in text


def test_where_nothing_is_better_the_baseline_is_kept() -> None:
    text = flat(text_report(replace(REPORT, chosen=BASELINE)))

    assert "No candidate is better than onnxruntime-fp32: keep it." in text
    assert text.count("▸") == 1
    assert "labelled examples its" not in text


def test_a_machine_that_was_never_quiet_is_told_of() -> None:
    busy = replace(REPORT, baseline=replace(BASELINE, disturbed=True))

    assert "Other processes used the CPU nearly all the time" in flat(text_report(busy))
    assert "Other processes used" not in flat(text_report(REPORT))


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("throughput", "openvino-int8 answers 211/s instead of 68.1/s, and takes 67.8 %"),
        ("memory", "openvino-int8 needs 145 MB instead of 130 MB, and takes"),
        ("cost", "openvino-int8 answers 211/s instead of 68.1/s, and takes 67.8 %"),
    ],
)
def test_what_was_asked_for_is_told_first(target: str, said: str) -> None:
    settings = replace(REPORT.settings, target=target)

    assert said in flat(text_report(replace(REPORT, settings=settings)))


def test_with_a_price_costs_are_told_first_and_of_every_candidate() -> None:
    others = [replace(one, cost_per_million=0.75) for one in REPORT.candidates]
    priced = replace(
        REPORT,
        settings=replace(REPORT.settings, target="cost"),
        baseline=replace(BASELINE, cost_per_million=1.23),
        chosen=replace(REPORT.chosen, cost_per_million=0.398),
        candidates=others,
    )

    text = text_report(priced)

    assert "openvino-int8 costs 0.398 instead of 1.23 per million requests" in flat(text)
    assert text.count("0.75") == len(others)
    assert "requests on all cores at once" in flat(text)


def test_what_was_rejected_for_one_reason_shares_a_line() -> None:
    alike = [CandidateReport(name=name, reason="needs a GPU") for name in ("fp16", "int8")]

    text = text_report(replace(REPORT, rejected=[*REPORT.rejected, *alike]))

    assert "  fp16, int8: needs a GPU\n" in text


def test_a_terminal_of_few_letters_gets_those() -> None:
    text = text_report(replace(REPORT, model="modèle.onnx"), encoding="ascii")

    assert text.isascii()
    assert "> openvino-int8" in text
    assert "mod\\xe8le.onnx" in text


def test_names_cannot_command_the_terminal() -> None:
    hostile = CandidateReport(name="\x1b]0;x\x07", reason="boom\x1b[31m\r\nok")

    text = text_report(replace(REPORT, model="\x1b[2J", rejected=[hostile]))

    assert all(letter.isprintable() or letter == "\n" for letter in text)


def test_the_json_has_the_keys_that_programs_read() -> None:
    document = msgspec.to_builtins(REPORT)

    assert {"baseline", "chosen", "rejected"} <= document.keys()
    for one in (document["baseline"], document["chosen"], *document["rejected"]):
        assert {"p50_s", "p50_ci_s", "accuracy", "reason"} <= one.keys()
    assert document["chosen"]["cut_ratio"] == 0.678


def test_a_report_survives_being_kept() -> None:
    kept = msgspec.json.encode(REPORT)

    assert msgspec.json.decode(kept, type=OptimizeReport) == REPORT


LABELLED = QualityEvidence(n=2693)


def test_an_interval_is_in_the_unit_of_its_figure() -> None:
    assert text.seconds(1.01e-3, (0.99e-3, 1.2e-3)) == "1.01 ms [0.99, 1.2]"
    assert text.percent(0.678, (0.675, 0.681)) == "67.8 % [67.5, 68.1]"


@pytest.mark.parametrize(
    ("n", "expected"), [(50, "88.5 %"), (500, "88.5 %"), (2693, "88.49 %"), (50_000, "88.490 %")]
)
def test_accuracy_has_the_decimals_that_one_example_changes(n: int, expected: str) -> None:
    candidate = CandidateReport(name="a", accuracy=0.8849, n=n)

    assert text.quality(candidate, LABELLED) == expected


def test_without_labels_agreement_stands_for_accuracy() -> None:
    candidate = CandidateReport(name="a", agreement_ratio=0.991)

    assert text.quality(candidate, QualityEvidence()) == "99.1 %"
    assert text.quality_head(QualityEvidence()) == "agreement"


def test_another_metric_is_no_percentage() -> None:
    data = QualityEvidence(n=1379, metric="Spearman correlation")
    candidate = CandidateReport(
        name="a", accuracy=0.82061, accuracy_loss=0.0018, accuracy_loss_ci=(-0.0006, 0.004)
    )

    assert text.quality(candidate, data) == "0.8206"
    assert text.loss(candidate, data) == "0.0018 [-0.0006, 0.0040]"


def test_a_loss_is_in_points_and_none_has_no_sign() -> None:
    candidate = CandidateReport(
        name="a", accuracy_loss=-0.00001, accuracy_loss_ci=(-0.0041, 0.0033), n=2693
    )

    assert text.loss(candidate, LABELLED) == "0.00 [-0.41, 0.33]"


@pytest.mark.parametrize(
    ("value", "expected"), [(None, ""), (1e-9, "p < 0.001"), (0.0312, "p = 0.031"), (1.0, "p = 1")]
)
def test_chances_are_not_told_more_exactly_than_they_are_known(
    value: float | None, expected: str
) -> None:
    assert text.p_value(value) == expected


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    assert printable("a\x1b[2Jb\nc\ud800") == "a\\x1b[2Jb c?"
