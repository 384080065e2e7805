"""Model profile of this machine: measured speed, predicted capacity, recommended settings.

A worker process measures; predictions and recommendations are pure functions of its figures.
"""
