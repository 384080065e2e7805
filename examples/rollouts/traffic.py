"""Ask about digits as 20,000 users do, until the rollout under way is over.

    python examples/rollouts/traffic.py FOLDER

FOLDER is where `train.py` wrote `test.npz`; run this where `headrace up` was started. Prints which
version answered how often, how many users were moved back from the new version to the old one, and
how the rollout ended.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np

GATEWAY = "http://127.0.0.1:8000/v2/models/digits/infer"
ROLLOUT = "http://127.0.0.1:8080/api/v1/endpoints/digits/rollout"
USERS = 20_000


def main(folder: Path) -> None:
    """Send rows round and round."""
    rows = np.load(folder / "test.npz")["inputs"]
    random = np.random.default_rng()
    seen: dict[str, set[str]] = {}
    answers: Counter[str] = Counter()
    moved_back = 0
    token = subprocess.check_output(["headrace", "token", "show"], text=True).strip()  # noqa: S607  # on PATH
    status = Request(ROLLOUT, headers={"authorization": f"Bearer {token}"})
    while not (rollout := get(status))["over"]:
        for row in rows[random.integers(0, len(rows), 50)]:
            user = f"user-{random.integers(USERS)}"
            version = ask(row.tolist(), user)
            answers[version] += 1
            versions = seen.setdefault(user, set())
            moved_back += version == rollout["from_version"] and rollout["to_version"] in versions
            versions.add(version)
    print(f"{rollout['phase']}: {rollout['reason']}")
    print(f"answers by version: {dict(sorted(answers.items()))}; users moved back: {moved_back}")


def ask(row: list[float], user: str) -> str:
    """The version that answers `user`."""
    tensor = {"name": "pixels", "datatype": "FP32", "shape": [1, len(row)], "data": row}
    body = json.dumps({"inputs": [tensor]}).encode()
    answer = get(Request(GATEWAY, data=body, headers={"x-user-id": user}))
    return str(answer["model_version"])


def get(what: Request) -> dict[str, object]:
    """A JSON document."""
    with urlopen(what) as answer:  # noqa: S310  # ours
        found: dict[str, object] = json.load(answer)
    return found


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004  # the script and FOLDER
        sys.exit("usage: python traffic.py FOLDER")
    main(Path(sys.argv[1]))
