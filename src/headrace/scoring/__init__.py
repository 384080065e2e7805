"""Scorer of rows that serving, streams and jobs share. Imports `pipeline` and below."""
