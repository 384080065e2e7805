"""Reports as an optimization makes them; the figures are those of one that was run."""

from headrace.optimize.report import (
    CandidateReport,
    MeasurementSettings,
    OptimizeReport,
    QualityEvidence,
)
from headrace.runtimes.optimized.file import Processor

N = 2693
BASELINE = CandidateReport(
    name="onnxruntime-fp32",
    title="ONNX Runtime, as it is",
    p50_s=14.64e-3,
    p50_ci_s=(14.5e-3, 14.81e-3),
    p99_s=16.1e-3,
    cold_p50_s=15.9e-3,
    throughput_per_s=68.1,
    cut_ratio=0.0,
    cut_ci_ratio=(0.0, 0.0),
    accuracy=0.8845,
    n=N,
    size_bytes=90_400_000,
    memory_bytes=130_000_000,
)
CHOSEN = CandidateReport(
    name="openvino-int8",
    title="OpenVINO, INT8 by NNCF",
    p50_s=4.71e-3,
    p50_ci_s=(4.66e-3, 4.8e-3),
    p99_s=5.3e-3,
    cold_p50_s=6.02e-3,
    cold_cut_ratio=0.621,
    cold_cut_ci_ratio=(0.612, 0.629),
    throughput_per_s=211.0,
    cut_ratio=0.678,
    cut_ci_ratio=(0.675, 0.681),
    accuracy=0.8849,
    accuracy_loss=-0.0004,
    accuracy_loss_ci=(-0.0041, 0.0033),
    p_value=1.0,
    lost=12,
    gained=13,
    n=N,
    agreement_ratio=0.9907,
    size_bytes=23_100_000,
    memory_bytes=145_000_000,
    reason="the fastest that lost no more than 1 point",
    recipe={"precision": "int8", "calibration": "256 examples"},
    build_s=7.2,
)


def passed(
    name: str, p50_s: float, accuracy: float, size_bytes: int, reason: str = ""
) -> CandidateReport:
    cut = 1 - p50_s / 14.64e-3
    lost = 0.8845 - accuracy
    return CandidateReport(
        name=name,
        title=name,
        p50_s=p50_s,
        p50_ci_s=(p50_s * 0.99, p50_s * 1.015),
        cut_ratio=cut,
        cut_ci_ratio=(cut - 0.004, cut + 0.003),
        accuracy=accuracy,
        accuracy_loss=lost,
        accuracy_loss_ci=(lost - 0.004, lost + 0.004),
        p_value=0.5,
        n=N,
        size_bytes=size_bytes,
        agreement_ratio=1 - abs(lost) - 0.01,
        reason=reason,
    )


REPORT = OptimizeReport(
    model="sst2-minilm.onnx",
    model_digest="sha256:3b1f0e",
    model_class="transformer",
    processor=Processor(
        name="AMD EPYC 9V45", features=("avx2", "avx512_bf16", "avx512_vnni", "avx_vnni")
    ),
    versions={"headrace": "0.1.0", "onnxruntime": "1.32.0", "openvino": "2026.4.1"},
    settings=MeasurementSettings(length=128, max_loss=0.01, blocks=20),
    data=QualityEvidence(
        n=N,
        source="sst2-dev-test.csv",
        smallest_loss=0.0046,
        calibration_n=256,
        calibration_sha256="9f86d081884c7d659a2feaa0c55ad015",
    ),
    baseline=BASELINE,
    chosen=CHOSEN,
    references=[
        CandidateReport(
            name="torch-eager", title="PyTorch, eager", p50_s=31.5e-3, p50_ci_s=(31.1e-3, 32.2e-3)
        )
    ],
    candidates=[
        passed("openvino-bf16", 7.75e-3, 0.8853, 45_000_000),
        passed("openvino-fp32", 13.4e-3, 0.8845, 90_600_000),
        passed("onnxruntime-dynamic-int8", 5.6e-3, 0.8849, 22_900_000),
        passed("onnxruntime-no-skip-fusion", 13.9e-3, 0.8845, 90_400_000),
        passed("pruned-ffn-25-int8", 5.17e-3, 0.8793, 19_400_000),
    ],
    rejected=[
        passed(
            "onnxruntime-static-int8-all",
            6.9e-3,
            0.8552,
            23_400_000,
            reason="loses 2.93 points of accuracy (p < 0.001), and 1 is tolerated",
        ),
        passed(
            "openvino-int8-no-model-type",
            4.6e-3,
            0.7085,
            23_000_000,
            reason="loses 17.6 points of accuracy (p < 0.001), and 1 is tolerated",
        ),
        CandidateReport(
            name="tensorrt-fp16",
            title="TensorRT, FP16",
            reason="there is no GPU: the driver's library libcuda.so.1 cannot be loaded",
        ),
    ],
    notes=["Unstructured sparsity was not tried: it gains no time on a processor."],
    elapsed_s=151.0,
    created_at="2026-11-27T12:00:00Z",
)
