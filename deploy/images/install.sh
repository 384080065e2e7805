#!/usr/bin/env bash
# install.sh LOCK [UNLOCKED]: what an image depends on, into /opt/headrace.
# install.sh --finish LOCK [UNLOCKED]: the package itself, into /opt/package/opt/headrace, and the
# bill of materials into /usr/share/sbom. The base of the image is mounted at /base.
set -euo pipefail
cd "$(dirname "$0")/../.."

pip() { /opt/build/bin/python -m pip --disable-pip-version-check --python /opt/headrace/bin/python "$@"; }
fail() {
  printf 'install: %s\n' "$*" >&2
  exit 1
}
site_packages() { /opt/headrace/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

# Sources, headers and tests of dependencies: read by compilers and developers, never at run time.
trim() { # trim FOLDER
  # TensorFlow and Keras call parts of their interfaces so (tf.test), and import them.
  find "$1" -depth -type d \( -name tests -o -name test -o -name include \) \
    ! -path '*/tensorflow/*' ! -path '*/keras/*' -exec rm -rf {} +
  rm -rf "$1"/tensorflow/include
  find "$1" -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name '*.c' -o -name '*.cpp' \
    -o -name '*.cc' -o -name '*.h' -o -name '*.hpp' -o -name '*.a' \) -delete
  # The library for programs in C, 35 MB: Python's module has all of it in itself.
  rm -rf "$1"/onnxruntime/{transformers,tools,datasets} "$1"/onnxruntime/capi/libonnxruntime.so*
}
compile() { # compile FOLDER; the time of a file is no matter, so that two builds give the same bytes
  /opt/headrace/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$1"
}

dependencies() {
  local lock="requirements/images/$1.txt" unlocked="${2:-}"
  [ -f "$lock" ] || fail "there is no $lock; known: $(cd requirements/images && echo *.txt)"
  python3 -m venv --without-pip /opt/headrace
  # The lock names what is tested: a package that says it ends at some older Python is taken all the
  # same, as uv takes it. pip would refuse it.
  pip install --quiet --no-compile --no-deps --require-hashes --ignore-requires-python -r "$lock"
  if [ -n "$unlocked" ]; then
    # Held to the lock in what both name, and to the builder's own constraints; its own packages are
    # whatever the index has.
    local constraints=(--constraint /tmp/constraints.txt)
    [ ! -s /run/secrets/constraints.txt ] || constraints+=(--constraint /run/secrets/constraints.txt)
    sed -n 's/^\([A-Za-z0-9._-]*==[^ \\]*\( ;[^\\]*\)\{0,1\}\).*/\1/p' "$lock" >/tmp/constraints.txt
    read -ra wanted <<<"$unlocked"
    pip install --quiet --no-compile "${constraints[@]}" "${wanted[@]}"
  fi
  local site
  site="$(site_packages)"
  rm -f /opt/headrace/bin/[Aa]ctivate*
  trim "$site"
  compile "$site" || true # some packages carry files of other Pythons
}

finish() {
  local lock="$1" site missing expected
  site="$(site_packages)"
  pip install --quiet --no-compile --no-deps --no-index /wheels/*.whl ||
    fail "the wheel is not for this Python: COMPILE_BASE and BUILD_BASE have different ones"
  compile "$site/headrace"
  # pip has to be content but for what is left out on purpose.
  expected="$(/opt/build/bin/python -m scripts.images.requirements --left-out "$lock" | paste -sd '|')"
  missing="$(pip check | grep -vE "^headrace .* requires (${expected:-nothing}), which is not installed\.$" |
    grep -v '^No broken requirements found\.$' || true)"
  [ -z "$missing" ] || fail "the lock $lock is not whole: $missing"

  local target=/opt/package
  mkdir -p "$target/opt/headrace/bin" "$target$site"
  # What is compiled is one library beside the package, and a small one for each module.
  find "$site" -maxdepth 1 \( -name headrace -o -name 'headrace-*.dist-info' -o -name 'headrace__mypyc*' \) \
    -exec cp -a --target-directory "$target$site" {} +
  cp -a /opt/headrace/bin/headrace "$target/opt/headrace/bin/"
  # CUDA's libraries come as packages of Python's, where the loader does not look by itself.
  if compgen -G "$site/nvidia/*/lib" >/dev/null; then
    mkdir -p "$target/etc/ld.so.conf.d"
    printf '%s\n' "$site"/nvidia/*/lib >"$target/etc/ld.so.conf.d/nvidia.conf"
    cp "$target/etc/ld.so.conf.d/nvidia.conf" /etc/ld.so.conf.d/
    ldconfig -C "$target/etc/ld.so.cache"
  fi
  # Addresses of the build have no place in an image.
  rm -f "$target$site"/headrace-*.dist-info/direct_url.json
  mkdir -p /usr/share/sbom
  /opt/build/bin/python -m scripts.images.sbom --name "headrace-$lock" --packages "$site" \
    --base /base --output /usr/share/sbom/headrace.cdx.json
}

case "${1:-}" in
--finish) shift && finish "$@" ;;
'') fail "usage: install.sh [--finish] LOCK [UNLOCKED]" ;;
*) dependencies "$@" ;;
esac
