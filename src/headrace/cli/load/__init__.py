"""Load against any server of the V2 protocol, and its report."""
