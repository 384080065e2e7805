# What Prometheus and Grafana read, into the volume that they share with Headrace.
set -eu
umask 022
shared=/var/lib/headrace-shared
spec=/etc/headrace/headrace.yaml

# Other users than Headrace's read these: who has this volume may look at metrics, and do nothing else.
cp /var/lib/headrace/certs/ca.pem "$shared/ca.pem"
if [ ! -s "$shared/prometheus-token" ]; then
  rm -f "$shared/prometheus-token"
  headrace tokens create prometheus --role viewer --expires-in never --out "$shared/prometheus-token"
  chmod 0644 "$shared/prometheus-token"
fi
headrace export prometheus --file "$spec" --output "$shared/rules"
headrace export grafana --output "$shared/dashboards"
