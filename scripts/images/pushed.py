"""Record of pushed images: `images.json` with their digests, and Helm values that name them.

`python -m scripts.images.pushed FOLDER REGISTRY TAG NAME=METADATA...` reads the metadata files of
`docker buildx build`. Images of an earlier push to the same registry with the same tag stay.
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CHART_VALUES: Final = {"control": "control", "gateway": "gateway", "workers": "worker"}
"""Value of the chart that holds an `image` ▸ name of the image."""


def digest_of(metadata: Mapping[str, Any]) -> str:
    """The digest of a pushed image; of its index if it has several platforms.

    Raises:
        ValueError: The build reported none.
    """
    digest = str(metadata.get("containerimage.digest", ""))
    if _DIGEST.fullmatch(digest) is None:
        raise ValueError(f"the build reported '{digest}' as the digest of the image")
    return digest


def merged(
    before: Mapping[str, Any], registry: str, tag: str, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Content of `images.json` after a push: {"registry", "tag", "digests": {name: digest}}."""
    is_same = (before.get("registry"), before.get("tag")) == (registry, tag)
    earlier = before["digests"] if is_same else {}
    return {
        "registry": registry,
        "tag": tag,
        "digests": dict(sorted({**earlier, **digests}.items())),
    }


def chart_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Helm values of a record: the registry, and the digest of each image that was pushed."""
    values: dict[str, Any] = {"image": {"registry": record["registry"]}}
    for value, name in _CHART_VALUES.items():
        if digest := record["digests"].get(name):
            image = {"repository": name, "tag": record["tag"], "digest": digest}
            values[value] = {"image": image}
    return values


def main(arguments: list[str]) -> int:
    """Write both files, and print each reference by digest."""
    folder, registry, tag, *images = arguments
    target = Path(folder, "images.json")
    digests = {
        name: digest_of(json.loads(Path(file).read_text()))
        for name, _, file in (image.partition("=") for image in images)
    }
    before = json.loads(target.read_text()) if target.exists() else {}
    record = merged(before, registry, tag, digests)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(record, indent=2) + "\n")
    lines = [f"{name}: {json.dumps(value)}" for name, value in chart_values(record).items()]
    head = "# Images that `make push` pushed: helm upgrade --install -f image-values.yaml"
    target.with_name("image-values.yaml").write_text("\n".join([head, *lines, ""]))
    for name, digest in digests.items():
        print(f"{registry}/{name}@{digest}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
