"""Bill of materials of an image (CycloneDX 1.6, JSON), from the installed packages.

Python packages are read from their metadata, Debian packages from dpkg's list, so the bill lists
what is installed, not what was requested. The same image gives the same bytes.
Method: https://cyclonedx.org/docs/1.6/json/ and https://github.com/package-url/purl-spec.
"""

import argparse
import hashlib
import json
import re
import sys
import uuid
from collections.abc import Iterable, Iterator
from email.parser import HeaderParser
from email.policy import compat32
from importlib.metadata import Distribution, distributions
from operator import itemgetter
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

Component = dict[str, Any]

_DPKG_STATUS: Final = "var/lib/dpkg/status"
_DPKG_PARTS: Final = "var/lib/dpkg/status.d"
"""Where images without dpkg itself keep the list, a file for each package."""
_REQUIRED: Final = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)(?:;(.*))?$")
_NAMESPACE: Final = uuid.UUID("0a7c1d5e-0c53-5d0c-9d2e-5b1f6f2a8e11")


def python_components(packages: Path) -> Iterator[Component]:
    """Each distribution in a folder of packages, sorted by name."""
    by_name = {canonical(package.name): package for package in distributions(path=[str(packages)])}
    for name, package in sorted(by_name.items()):
        purl = f"pkg:pypi/{quote(name)}@{quote(package.version)}"
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": package.version,
            "purl": purl,
            **_licenses(package),
        }


def _licenses(package: Distribution) -> Component:
    """An expression where the metadata has one; else its line, if it is not the licence's text."""
    metadata = package.metadata
    if "License-Expression" in metadata:
        return {"licenses": [{"expression": metadata["License-Expression"]}]}
    classified = [
        line.rsplit(" :: ", 1)[1]
        for line in metadata.get_all("Classifier") or []
        if line.startswith("License :: ") and line.count(" :: ") > 1
    ]
    line = metadata["License"].strip() if "License" in metadata else ""
    names = classified or ([line] if line and "\n" not in line and len(line) < 100 else [])  # noqa: PLR2004  # a name, not a text
    return {"licenses": [{"license": {"name": name}} for name in names]} if names else {}


def python_dependencies(packages: Path) -> Iterator[Component]:
    """Which distribution needs which others that are there, extras left aside."""
    by_name = {canonical(package.name): package for package in distributions(path=[str(packages)])}
    purls = {n: f"pkg:pypi/{quote(n)}@{quote(package.version)}" for n, package in by_name.items()}
    for name, package in sorted(by_name.items()):
        needed = set()
        for line in package.requires or []:
            match = _REQUIRED.match(line)
            if match and "extra" not in (match[3] or "") and canonical(match[1]) in purls:
                needed.add(purls[canonical(match[1])])
        yield {"ref": purls[name], "dependsOn": sorted(needed)}


def debian_components(base: Path) -> Iterator[Component]:
    """Each installed Debian package of a root file system, sorted by name.

    Raises:
        FileNotFoundError: The file system has no list of packages.
    """
    distro, release = _distribution(base)
    for fields in sorted(_stanzas(base), key=itemgetter("Package", "Architecture")):
        name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
        qualifiers = f"arch={architecture}" + (f"&distro={distro}-{release}" if release else "")
        purl = f"pkg:deb/{distro}/{quote(name)}@{quote(version, safe='')}?{qualifiers}"
        yield {
            "type": "library",
            "bom-ref": purl,
            "name": name,
            "version": version,
            "purl": purl,
            "properties": [{"name": "headrace:source", "value": _source(fields)}],
        }


def _stanzas(base: Path) -> Iterator[dict[str, str]]:
    parts = base / _DPKG_PARTS
    files = [base / _DPKG_STATUS] if (base / _DPKG_STATUS).exists() else sorted(parts.glob("*"))
    files = [file for file in files if file.suffix != ".md5sums"]
    if not files:
        raise FileNotFoundError(f"{base} has neither {_DPKG_STATUS} nor {_DPKG_PARTS}")
    for file in files:
        for stanza in file.read_text().split("\n\n"):
            message = HeaderParser(policy=compat32).parsestr(stanza)
            if not message.get("Package"):
                continue
            if message.get("Status", "install ok installed").endswith(" installed"):
                yield {key: str(value) for key, value in message.items()}


def _source(fields: dict[str, str]) -> str:
    """The source package and its version, under which Debian's advisories are written."""
    name, _, version = fields.get("Source", fields["Package"]).partition(" ")
    return f"{name}@{version.strip('()') or fields['Version']}"


def _distribution(base: Path) -> tuple[str, str]:
    """`debian` and `13`, as /etc/os-release says."""
    try:
        text = (base / "etc/os-release").read_text()
    except OSError:
        return "debian", ""
    lines = (line.partition("=") for line in text.splitlines())
    fields = {key: value.strip('"') for key, _, value in lines}
    return fields.get("ID", "debian"), fields.get("VERSION_ID", "")


def canonical(name: str) -> str:
    """A package's name as the index compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def bill_of_materials(
    name: str, components: Iterable[Component], dependencies: Iterable[Component]
) -> Component:
    """The document. `name`: the image's. The serial number follows from what is in it."""
    listed = list(components)
    interpreter = f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}"
    python = {
        "type": "platform",
        "bom-ref": f"pkg:generic/python@{interpreter}",
        "name": "python",
        "version": interpreter,
        "purl": f"pkg:generic/python@{interpreter}",
        "licenses": [{"license": {"id": "PSF-2.0"}}],
    }
    python_packages = [part for part in listed if part["purl"].startswith("pkg:pypi")]
    versions = {part["name"]: part["version"] for part in python_packages}
    image: Component = {"type": "container", "bom-ref": name, "name": name}
    if "headrace" in versions:
        image["version"] = versions["headrace"]
    document: Component = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": image},
        "components": [python, *listed],
        "dependencies": list(dependencies),
    }
    content = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    return {"serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}", **document}


def main(arguments: list[str]) -> int:
    """Write the bill of an image's packages and of its base."""
    parser = argparse.ArgumentParser(prog="python -m scripts.images.sbom")
    parser.add_argument("--name", required=True)
    parser.add_argument("--packages", type=Path, required=True, help="site-packages of the image")
    parser.add_argument("--base", type=Path, required=True, help="the image's root")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    document = bill_of_materials(
        options.name,
        [*debian_components(options.base), *python_components(options.packages)],
        python_dependencies(options.packages),
    )
    options.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
