#!/usr/bin/env bash
# Install Debian's Java for the tests of jobs on Spark. Needs root and apt-get.
# Does nothing where Java is installed already.
set -euo pipefail

if command -v java >/dev/null || [ -x "${JAVA_HOME:-}/bin/java" ]; then
  exit 0
fi
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
  echo 'needs root and apt-get' >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# The oldest that Spark runs on is what most clusters have; newer Debians ship newer ones only.
java=openjdk-17-jre-headless
apt-cache show "$java" >/dev/null 2>&1 || java=default-jre-headless
apt-get install -y -qq --no-install-recommends "$java"
