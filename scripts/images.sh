#!/usr/bin/env bash
# Build container images: images.sh [NAME...]; by default all images that need no framework.
# images.sh --push [NAME...]: build for all PLATFORMS and push to PREFIX, with an SBOM and provenance attached.
# The name `chart` is the Helm chart, pushed to oci://PREFIX/charts. Writes dist/images.json and
# dist/image-values.yaml, for `helm install -f`.
# images.sh --pin: renew the digests of the base images in deploy/images/Dockerfile from their tags.
#
# Environment variables:
#   BASE         base image by digest, NAME@sha256:...; default: deploy/images/Dockerfile.
#                BASE=debian builds one from Debian packages with debootstrap (SUITE, trixie), for
#                machines that reach no registry. Needs root.
#   BUILD_BASE   the same with pip and venv, if BASE lacks them.
#   COMPILE_BASE the same Python with venv, headers and a C compiler.
#   UNPINNED     1 accepts base images by tag; COMPILE_BASE of python:X-slim is then python:X.
#   PREFIX, TAG  image names: PREFIX/replica:TAG; default: headrace and the version. --push needs PREFIX.
#   PLATFORMS    for --push; default: linux/amd64,linux/arm64, without what the builder cannot run.
#   SBOM_GENERATOR  image that makes the attached SBOM; default: BuildKit's, on Docker Hub.
#   DIST         folder of what is written; default: dist. SBOM_DIR: of the bills of materials; default: DIST/images.
#   UNLOCKED     unlocked requirement of replica-torch, torch>=2.8; the pip index decides on the build.
#   NETWORK      network of the build, as for docker build --network.
# The builder's pip settings (mirror, proxy, certificates, folders of wheels, constraints) are used for
# the build and stay out of the images.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
prefix="${PREFIX:-headrace}" prefix="${prefix%/}"
tag="${TAG:-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)}"
dist="${DIST:-dist}"
sboms="${SBOM_DIR:-$dist/images}"
suite="${SUITE:-trixie}"

say() { printf 'images: %s\n' "$*"; }
fail() {
  printf 'images: %s\n' "$*" >&2
  exit 1
}

if [ "${1:-}" = --pin ]; then
  file="${DOCKERFILE:-deploy/images/Dockerfile}"
  sed -n 's/^ARG [A-Z_]*=\([^$@]*\)@sha256:.*/\1/p' "$file" | while read -r image; do
    digest="$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' "$image" </dev/null)" ||
      fail "the registry has no image $image"
    [[ "$digest" =~ ^sha256:[0-9a-f]{64}$ ]] || fail "the registry's answer for $image is not a digest"
    sed -i "s|=$image@sha256:[0-9a-f]*|=$image@$digest|" "$file"
  done
  exit
fi

push=""
if [ "${1:-}" = --push ]; then push=1 && shift; fi
if [ -n "$push" ]; then
  # `headrace/control` would be of Docker Hub, where anybody can take the name.
  [[ "${PREFIX:-}" =~ ^(localhost|[^/]*[.:][^/]*)(/|$) ]] ||
    fail "PREFIX names the registry that you push to, with its host: make push PREFIX=registry.example/ml"
  [ "${BASE:-}" != debian ] || fail "--push needs a base image that the builder can pull: push yours, and name it in BASE by digest"
fi
names=("$@")
[ ${#names[@]} -gt 0 ] || names=(replica gateway control worker standalone ${push:+chart})
if [ -n "$push" ] && [[ " ${names[*]} " = *" chart "* ]]; then
  helm="$(command -v helm || command -v .venv-kube/bin/helm)" || fail "there is no helm to push the chart; make setup ENV=kube installs it"
fi

pinned() { sed -n "s/^ARG $1=//p" deploy/images/Dockerfile; } # pinned ARGUMENT
base="${BASE:-$(pinned BASE)}"
build_base="${BUILD_BASE:-$base}"
if [ -z "${BASE:-}" ]; then
  compile_base="${COMPILE_BASE:-$(pinned COMPILE_BASE)}"
else
  # The slim ones of Python's official images are the others without a compiler.
  compile_base="${COMPILE_BASE:-${build_base/-slim/}}"
fi
check_pinned() { # check_pinned SETTING IMAGE
  [[ "$2" =~ @sha256:[0-9a-f]{64}$ ]] ||
    fail "$1 is the tag $2, which may be another image tomorrow: name it by digest, as NAME@sha256:..., or set UNPINNED=1"
}
if [ "$base" != debian ] && [ -z "${UNPINNED:-}" ]; then
  check_pinned BASE "$base"
  check_pinned BUILD_BASE "$build_base"
  # A digest is of one image: that of the slim one is not that of the other.
  [ -z "${BASE:-}" ] || [ -n "${COMPILE_BASE:-}" ] || fail "BASE needs COMPILE_BASE beside it: the same Python with headers and a C compiler, by digest"
  check_pinned COMPILE_BASE "$compile_base"
fi

has_images=1
[ "${push:+${names[*]}}" != chart ] || has_images=""
[ -z "$has_images" ] || command -v docker >/dev/null || fail "there is no docker; Debian has it as docker-cli with docker-buildx"
[ -z "$has_images" ] || docker version >/dev/null 2>&1 ||
  fail "no Docker daemon answers; one of its own starts: export DOCKER_HOST=\$(scripts/start_docker.sh /tmp/headrace-docker)"

work="$(mktemp -d)"
trap 'rm -rf --one-file-system "$work"' EXIT

# A Debian with these packages too, in FOLDER.
bootstrap() { # bootstrap FOLDER PACKAGES
  debootstrap --variant=minbase --cache-dir "$cache" --include="python3,python3-venv,ca-certificates,$2" \
    "$suite" "$1" "${DEBIAN_MIRROR:-http://deb.debian.org/debian}" >"$work/log" 2>&1 ||
    { tail -n 5 "$work/log" >&2 && fail "debootstrap failed"; }
  # Where the packages came from, and on which machine, is the builder's business.
  printf 'deb http://deb.debian.org/debian %s main\n' "$suite" >"$1/etc/apt/sources.list"
  rm -rf "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/var/cache/apt/archives/*.deb \
    "$1"/var/lib/apt/lists/* "$1"/var/log/*.log
}
import_image() { # import_image FOLDER NAME
  tar -C "$1" -c . | docker import - "$2" >/dev/null
}

# Debian with Python: with pip, to build in; with a compiler; and without either, to run in.
make_base() {
  local root="$work/root" cache="$work/packages"
  base="headrace-base:$suite" build_base="headrace-build-base:$suite" compile_base="headrace-compile-base:$suite"
  if [ -z "${REBUILD_BASE:-}" ] && docker image inspect "$base" "$build_base" "$compile_base" >/dev/null 2>&1; then
    say "$base is there (REBUILD_BASE=1 rebuilds it)"
    return
  fi
  command -v debootstrap >/dev/null || fail "there is no debootstrap; Debian has it under that name"
  [ "$(id -u)" = 0 ] || fail "debootstrap needs root"
  say "making $base of Debian's packages, which takes two minutes"
  mkdir -p "$cache"
  bootstrap "$work/compile" python3-dev,gcc,libc6-dev
  import_image "$work/compile" "$compile_base"
  rm -rf --one-file-system "$work/compile"
  bootstrap "$root" libgomp1,tini,tzdata
  import_image "$root" "$build_base"
  local extra
  mapfile -t extra < <(chroot "$root" dpkg-query -W -f '${Package}\n' 'python3*-venv' 'python3-*-whl')
  chroot "$root" dpkg --purge "${extra[@]}" >"$work/log" 2>&1 ||
    { tail -n 5 "$work/log" >&2 && fail "cannot remove ${extra[*]}"; }
  import_image "$root" "$base"
}

# Wheels that pip's settings name as folders, where the build can see them.
collect_wheels() { # collect_wheels FOLDER
  mkdir -p "$wheels"
  find "${1#file://}" -maxdepth 1 -type f \( -name '*.whl' -o -name '*.tar.gz' \) \
    -exec cp --update --target-directory "$wheels" {} + || fail "pip's find-links: cannot read $1"
}

# What pip's files set, whichever of them: `pip config get` reads the user's alone.
pip_setting() { # pip_setting KEY: several values stand on one line
  sed <<<"$pip_settings" -n "s/^global\.$1='\(.*\)'\$/\1/p" | sed 's/\\n/ /g'
}

# pip's own settings, for the build alone. Files that they name become secrets of the build too.
secrets=()
wheels="$work/wheels"
find_links() { # find_links VALUE: the same as the build sees it
  local place seen=""
  for place in $1; do
    case "$place" in
    http://* | https://*) seen+=" $place" ;;
    *) collect_wheels "$place" ;;
    esac
  done
  [ ! -d "$wheels" ] || seen+=" /run/wheels"
  printf '%s' "$seen"
}
collect_secrets() {
  local key value conf="$work/pip.conf" ca="" pip_settings
  pip_settings="$("$python" -m pip config list 2>/dev/null || true)"
  printf '[global]\n' >"$conf"
  for key in index-url extra-index-url find-links trusted-host proxy timeout retries; do
    value="$(pip_setting "$key")"
    local variable="PIP_${key^^}"
    variable="${variable//-/_}"
    value="${!variable:-$value}"
    [ "$key" != find-links ] || value="$(find_links "$value")"
    [ -z "$value" ] || printf '%s = %s\n' "$key" "${value//$'\n'/ }" >>"$conf"
  done
  ca="${PIP_CERT:-$(pip_setting cert)}"
  if [ -n "$ca" ]; then
    printf 'cert = /run/secrets/ca.pem\n' >>"$conf"
    secrets+=(--secret "id=ca.pem,src=$ca")
  fi
  # Lines that hold for what is not locked; the build may not see the files that they stand in.
  local constraints="$work/constraints.txt" file
  : >"$constraints"
  for file in ${PIP_CONSTRAINT:-$(pip_setting constraint)}; do
    cat "${file#file://}" >>"$constraints" || fail "pip's constraint: cannot read $file"
  done
  secrets+=(--secret "id=constraints.txt,src=$constraints")
  secrets+=(--secret "id=pip.conf,src=$conf")
  [ ! -d "$wheels" ] || secrets+=(--build-context "found-wheels=$wheels")
}

# TensorFlow has no package for CPUs on ARM.
platforms_of() { if [ "$1" = replica-tensorflow ]; then printf linux/amd64; else printf '%s' "$platforms"; fi; }

# Sets `platforms`: those of PLATFORMS that the builder can run, all of them if PLATFORMS is set.
platforms=""
choose_platforms() {
  local builder can platform
  builder="$(docker buildx inspect --bootstrap)" || fail "there is no builder: docker buildx create --use"
  if grep -q '^Driver: *docker$' <<<"$builder" && [[ "$(docker info --format '{{.DriverStatus}}')" != *containerd* ]]; then
    fail "the image store of this Docker daemon holds neither attestations nor several platforms: docker buildx create --use makes a builder that does"
  fi
  can="$(sed -n 's/^Platforms: *//p' <<<"$builder" | tr -d '* ' | tr ',' '\n')"
  for platform in $(tr ',' ' ' <<<"${PLATFORMS:-linux/amd64,linux/arm64}"); do
    if grep -qxF "$platform" <<<"$can"; then
      platforms+="${platforms:+,}$platform"
    elif [ -n "${PLATFORMS:-}" ]; then
      fail "the builder cannot run $platform: install QEMU's emulators (docker run --privileged --rm tonistiigi/binfmt --install all) or add a node of it (docker buildx create --append)"
    else
      say "without $platform, which the builder cannot run: QEMU's emulators or another node add it"
    fi
  done
  [ -n "$platforms" ] || fail "the builder runs none of linux/amd64 and linux/arm64: set PLATFORMS"
}

# What frameworks are asked for: their builds for CPU and CUDA share a version but no hash.
unlocked_of() { # unlocked_of NAME
  case "$1" in
  replica-torch) printf '%s' "${UNLOCKED:-torch>=2.8}" ;;
  *) printf '%s' "${UNLOCKED:-}" ;;
  esac
}

build() { # build NAME
  local name="$1" target="${1%%-*}" lock="$1" unlocked
  unlocked="$(unlocked_of "$name")"
  [ "$name" != replica-torch ] || lock=replica
  [ -f "requirements/images/$lock.txt" ] || fail "there is no image $name: $(known)"
  local revision=""
  revision="$(git rev-parse --verify --quiet HEAD 2>/dev/null || true)"
  local arguments=(--file deploy/images/Dockerfile --build-arg "BASE=$base"
    --build-arg "BUILD_BASE=$build_base" --build-arg "COMPILE_BASE=$compile_base" ${NETWORK:+--network "$NETWORK"} "${secrets[@]}")
  if [ "$target" = replica ]; then arguments+=(--build-arg "LOCK=$lock" --build-arg "UNLOCKED=$unlocked"); fi
  local labels=(--label "org.opencontainers.image.title=headrace-$name"
    --label "org.opencontainers.image.version=$tag"
    --label "org.opencontainers.image.licenses=Apache-2.0"
    --label "org.opencontainers.image.base.name=${base%@*}"
    --label "org.opencontainers.image.base.digest=$(sed -n 's/.*@//p' <<<"$base")"
    ${revision:+--label "org.opencontainers.image.revision=$revision"})
  local output=(--load --provenance=false)
  if [ -n "$push" ]; then
    arguments+=(--platform "$(platforms_of "$name")")
    output=(--push --provenance=mode=max --attest "type=sbom${SBOM_GENERATOR:+,generator=$SBOM_GENERATOR}"
      --metadata-file "$work/$name.json")
    pushed+=("$name=$work/$name.json")
  fi
  say "building $prefix/$name:$tag"
  docker buildx build "${output[@]}" "${arguments[@]}" "${labels[@]}" \
    --target "$target" --tag "$prefix/$name:$tag" --progress "${PROGRESS:-auto}" . ||
    fail "$name cannot be built"
  docker buildx build --quiet "${arguments[@]}" --target "$target-sbom" --output "type=local,dest=$work/sbom" . >/dev/null ||
    fail "there is no bill of materials of $name"
  mkdir -p "$sboms"
  # With several platforms, one folder each: linux_arm64.
  local file platform
  while read -r file; do
    platform="$(basename "$(dirname "$file")")"
    mv "$file" "$sboms/$name.$([ "$platform" = sbom ] || printf '%s.' "$platform")cdx.json"
  done < <(find "$work/sbom" -name headrace.cdx.json)
  rm -rf "$work/sbom"
}

push_chart() {
  local options=() version output digest
  # Loopback registries have no certificate; Docker makes the same exception.
  [[ ! "$prefix" =~ ^(localhost|127\.|\[::1\]) ]] || options+=(--plain-http)
  # Helm wants SemVer: 1.0.0rc1 is 1.0.0-rc.1.
  version="$(sed -nE '/^version = /{s/.*"(.*)"/\1/;s/^([0-9.]*[0-9])\.?(a|b|rc|dev)([0-9]+)$/\1-\2.\3/;p}' pyproject.toml)"
  "$helm" package charts/headrace --version "$version" --app-version "$tag" --destination "$work" >/dev/null ||
    fail "the chart cannot be packaged"
  output="$("$helm" push "$work/headrace-$version.tgz" "oci://$prefix/charts" "${options[@]}" 2>&1)" ||
    fail "the chart cannot be pushed to oci://$prefix/charts: $output"
  digest="$(sed -n 's/^Digest: *//p' <<<"$output")"
  printf '{"containerimage.digest": "%s"}\n' "$digest" >"$work/chart.json"
  pushed+=("charts/headrace=$work/chart.json")
}

known() { printf "%s replica-torch" "$("$python" -m scripts.images.requirements --list | paste -sd " ")"; }

report() {
  printf '\n%-44s %9s\n' image size
  for name in "$@"; do
    docker image inspect --format '{{index .RepoTags 0}} {{.Size}}' "$prefix/$name:$tag" |
      awk '{printf "%-44s %6.0f MB\n", $1, $2 / 1e6}'
  done
}

pushed=() # NAME=FILE, what the build reported
[ "$base" != debian ] || make_base
[ -z "$push" ] || [ -z "$has_images" ] || choose_platforms
[ -z "$has_images" ] || collect_secrets
for name in "${names[@]}"; do
  if [ -n "$push" ] && [ "$name" = chart ]; then push_chart; else build "$name"; fi
done
if [ -n "$push" ]; then
  "$python" -m scripts.images.pushed "$dist" "$prefix" "$tag" "${pushed[@]}"
else
  report "${names[@]}"
fi
