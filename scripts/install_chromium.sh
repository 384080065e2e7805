#!/usr/bin/env bash
# Install Debian's Chromium for the tests that walk through the console.
# Needs root and apt-get. Does nothing where it is installed already.
set -euo pipefail

if command -v chromium >/dev/null; then
  exit 0
fi
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
  echo 'needs root and apt-get' >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core
