#!/usr/bin/env bash
# Renew the digests of base images in deploy/images/Dockerfile by what their tags are in the registry.
set -euo pipefail
cd "$(dirname "$0")/.."

file="${DOCKERFILE:-deploy/images/Dockerfile}"
fail() {
  printf 'pin_images: %s\n' "$*" >&2
  exit 1
}

sed -n 's/^ARG [A-Z_]*=\([^$@]*\)@sha256:.*/\1/p' "$file" | while read -r image; do
  digest="$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image" </dev/null)" ||
    fail "the registry does not say which image $image is"
  [[ "$digest" =~ ^sha256:[0-9a-f]{64}$ ]] || fail "what the registry says of $image is no digest"
  sed -i "s|^\(ARG [A-Z_]*=$image\)@sha256:.*|\1@$digest|" "$file"
  printf 'pin_images: %s is %s\n' "$image" "$digest"
done
