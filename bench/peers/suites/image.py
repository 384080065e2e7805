"""What is left of a ResNet-18's speed with 600 kB in each request?

One connection. The floor is a bare socket that reads the body into a buffer, runs and answers.
"""

from collections.abc import Sequence
from typing import Final

from bench import systems, verify
from bench.load import closed
from bench.payloads import raw_payload
from bench.peers.pair import Pair, closed_arm, metered
from bench.peers.rows import Row
from bench.windows import Arm

SUITE: Final = "image"
FLOOR: Final = "bare socket"
BINARY: Final = "binary, 1 connection"
OWN: Final = "binary (the peer: JSON), 1 connection"


def run(pair: Pair) -> Sequence[Row]:
    """Both, and the floor in the same rounds."""
    context, model = pair.context, pair.model
    is_binary = pair.theirs.binary is not None
    with systems.bare_socket(
        model.path,
        name=f"{model.name}-{pair.theirs.name}",
        cores=context.placement.server,
        home=context.home,
    ) as bare:
        pixels = [row["input"] for row in model.rows]
        verify.check_raw(
            FLOOR, bare.http, raw_payload(pixels[0]), model.expected(model.rows[0])["prob"]
        )
        load = context.load(
            [raw_payload(one) for one in pixels],
            name=f"{FLOOR}-{model.name}",
            connections=1,
            seconds=pair.plan.seconds,
        )

        arms = [
            closed_arm(pair, pair.ours, pair.closed_load(pair.ours, connections=1, binary=True)),
            closed_arm(
                pair, pair.theirs, pair.closed_load(pair.theirs, connections=1, binary=is_binary)
            ),
            Arm(
                name=FLOOR,
                measure=lambda: metered(
                    systems.BARE_SOCKET, lambda: closed.measure(bare.http, load)
                ),
            ),
        ]
        return pair.compare(SUITE, BINARY if is_binary else OWN, arms, rounds=pair.plan.few)
