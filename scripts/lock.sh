#!/usr/bin/env bash
# Resolve pyproject.toml into requirements/*.txt: versions and hashes, no address of any index.
#
# Versions that are already locked stay unless they no longer fit; --upgrade takes newer ones.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p requirements/images
lock() { # lock NAME ARGUMENTS-OF-uv-pip-compile...
  local out="requirements/$1.txt"
  shift
  .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-emit-index-url --no-emit-find-links --no-annotate \
    --custom-compile-command "make lock" --output-file "$out" "$@"
}

lock dev --group dev --group docs "${@}" pyproject.toml
# What is shared has one version everywhere: the others are held to dev's.
lock base --constraint requirements/dev.txt "${@}" pyproject.toml
lock demo --constraint requirements/dev.txt --group demo "${@}" pyproject.toml
lock bench --constraint requirements/dev.txt --group bench "${@}"
lock mutants --constraint requirements/dev.txt --group mutants "${@}"
lock build --constraint requirements/dev.txt --group build "${@}"
lock clients --group clients "${@}" # an environment of its own, which shares nothing with dev
lock uv "${@}" requirements/uv.in
lock images/build --constraint requirements/dev.txt "${@}" requirements/images/build.in
# What a container image holds: the package's dependencies less what its part has no use for.
for image in $(.venv/bin/python -m scripts.images.requirements --list); do
  .venv/bin/python -m scripts.images.requirements "$image" |
    lock "images/$image" --constraint requirements/dev.txt "${@}" -
done
