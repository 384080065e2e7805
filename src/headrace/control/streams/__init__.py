"""Stream workers: processes, their number and replacement. Imports `kubernetes` and below."""
