"""Gateway on this host: Envoy supervisor, certificates, routes. Imports `limits` and below."""
