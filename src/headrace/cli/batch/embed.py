"""Model of `headrace batch embed`: an endpoint that answers `POST /v1/embeddings`."""

import hashlib
from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from headrace.cli.base.connection import CommandTarget
from headrace.cli.base.options import CallerOptions
from headrace.cli.batch.model import Chosen
from headrace.cli.batch.openai import gateway_connection
from headrace.client.conversation import Attempts
from headrace.client.wires import blocking_transport
from headrace.core import ReplicaSettings, SystemClock
from headrace.core.encoders import EMBEDDING
from headrace.jobs.embeddings import EmbeddingsEndpoint
from headrace.jobs.messages import JobModel
from headrace.scoring.scorer import Scorer

if TYPE_CHECKING:
    from headrace.cli.batch.commands import EmbedOptions


def embedding_loader(
    options: "EmbedOptions", caller: CallerOptions, *, url: str | None, target: CommandTarget
) -> Callable[[], tuple[Chosen, Scorer]]:
    """Return what opens the endpoint, and describes it in the run's record.

    A resumed run needs the same endpoint, and vectors of the same size. The version is not part of
    the description, because the gateway chooses it for each request.
    """

    def load() -> tuple[Chosen, Scorer]:
        server, connections = gateway_connection(url, caller, lambda: target)
        endpoint = EmbeddingsEndpoint(
            transport=blocking_transport(server, connections),
            endpoint=options.endpoint,
            dimensions=options.dimensions,
            attempts=Attempts.of_offline_run(
                timeout_s=options.timeout_s,
                retry_for_s=options.retry_for_s,
                clock=SystemClock(),
                random=Random(),  # noqa: S311  # jitter, no secret
            ),
        )
        scorer = endpoint.load()
        output = scorer.signature.output(EMBEDDING)
        assert output is not None
        words = f"{options.endpoint} {output.shape[1]}"
        model = JobModel(
            reference=options.endpoint,
            version="",
            digest=f"sha256:{hashlib.sha256(words.encode()).hexdigest()}",
            runtime="openai",
        )
        settings = ReplicaSettings(model_name=options.endpoint, model_version="", path="")
        return Chosen(job_model=model, settings=settings), scorer

    return load
