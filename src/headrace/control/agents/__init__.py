"""Gateways on other hosts: what they are told, what they report, and when that is enough."""
