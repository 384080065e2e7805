"""Reader of existing Feast repositories: definitions, values. Imports its sibling `online`.

Feast itself is never imported. Its registry is a protobuf message, its online stores are tables and
hashes; all are read in the format of Feast 0.67.
"""
