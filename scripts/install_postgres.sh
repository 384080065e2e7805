#!/usr/bin/env bash
# Install Debian's Postgres for the contract tests, without the cluster that its package starts.
# Needs root and apt-get. Does nothing where a server is installed already.
set -euo pipefail

if compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; then
  exit 0
fi
if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
  echo 'needs root and apt-get' >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends postgresql-common
sed -ri 's/^#?create_main_cluster .*$/create_main_cluster = false/' \
  /etc/postgresql-common/createcluster.conf
apt-get install -y -qq --no-install-recommends postgresql
