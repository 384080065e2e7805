"""Gateway of this host: Envoy's supervisor, certificates and policy."""
