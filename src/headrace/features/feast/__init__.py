"""An existing repository of [Feast](https://docs.feast.dev/)'s: what it defines, and its values.

Feast itself is never loaded: its registry is a protobuf message, its online stores are tables and
hashes, all read as Feast 0.67 writes them.
"""
