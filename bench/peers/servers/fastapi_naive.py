"""FastAPI as most write it: a pydantic body, a plain function, so a thread of the pool."""

from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from bench.peers.servers.runtime import Model, port, setting


class Rows(BaseModel):
    """A batch of rows; pictures are nested deeper."""

    input: list[Any] | None = None
    input_ids: list[list[int]] | None = None
    attention_mask: list[list[int]] | None = None


def build() -> FastAPI:
    """`POST /NAME` with rows by the name of the input."""
    app = FastAPI()
    model = Model()

    @app.get("/ready")
    def ready() -> bool:
        return True

    @app.post(f"/{setting('NAME')}")
    def infer(rows: Rows) -> dict[str, list[list[float]]]:
        given = {
            name: np.array(getattr(rows, name), dtype) for name, (dtype, _) in model.inputs.items()
        }
        return {name: array.tolist() for name, array in model.run(given).items()}

    return app


if __name__ == "__main__":
    uvicorn.run(build(), host="127.0.0.1", port=port(), access_log=False, log_level="warning")
