"""Sandboxed programs: inspect, convert, search, profile. Imports `local` and below."""
