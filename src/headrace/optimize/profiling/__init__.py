"""Profile of a model on this machine: its speed, its limit, and how to serve it.

A worker measures in a process of its own; all that is concluded from its figures is pure.
"""
