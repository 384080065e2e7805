#!/usr/bin/env bash
# Unpack Debian's prometheus and promtool into DIRECTORY, without installing them.
# Needs apt-get and dpkg, and root where apt's package lists have to be fetched first.
set -euo pipefail

directory=${1:?directory}
if ! command -v apt-get >/dev/null || ! command -v dpkg >/dev/null; then
  echo 'needs apt-get and dpkg' >&2
  exit 1
fi
mkdir -p "$directory"
parts=$(mktemp -d "$directory/parts.XXXXXX")
trap 'rm -rf "$parts"' EXIT
cd "$parts"
apt-get download -qq prometheus promtool 2>/dev/null || {
  apt-get update -qq
  apt-get download -qq prometheus promtool
}
for package in ./*.deb; do
  dpkg -x "$package" unpacked
done
# Into place at once: another run may look at the same time.
for name in prometheus promtool; do
  mv "unpacked/usr/bin/$name" "$directory/$name"
done
