"""Engines of jobs on other machines; threads of this process are in `headrace.jobs.run`."""
