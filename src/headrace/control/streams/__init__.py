"""Stream workers: processes, their number and replacement. Imports `desired` and below."""
