"""The floor of a job: Polars reads, ONNX Runtime answers, Polars writes; nothing is kept whole.

python -m bench.polars_loop MODEL INPUT OUTPUT COLUMNS
"""

import json
import sys
import time
from typing import Final

import numpy as np
import onnxruntime as ort
import polars as pl

RUN_ROWS: Final = 2048


def main() -> None:
    """Print rows and seconds, the libraries' start left out."""
    model, source, output, columns = sys.argv[1:]
    names = [f"f{i}" for i in range(int(columns))]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model, options)
    began = time.perf_counter()

    def answered(frame: pl.DataFrame) -> pl.DataFrame:
        rows = frame.select(names).to_numpy(order="c")
        made = np.empty((frame.height, 2), np.float32)
        for start in range(0, frame.height, RUN_ROWS):
            part = slice(start, start + RUN_ROWS)
            (made[part],) = session.run(None, {"input": rows[part]})
        return frame.select("id").with_columns(prob=pl.Series(made, dtype=pl.Array(pl.Float32, 2)))

    schema = {"id": pl.Int64, "prob": pl.Array(pl.Float32, 2)}
    scan = pl.scan_parquet(source).select("id", *names)
    scan.map_batches(answered, streamable=True, schema=schema).sink_parquet(output)
    seconds = time.perf_counter() - began
    rows = pl.scan_parquet(output).select(pl.len()).collect().item()
    print(json.dumps({"rows": rows, "seconds": seconds}))


if __name__ == "__main__":
    main()
