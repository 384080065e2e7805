"""Profile of a model on this machine: speed and limits. Imports its sibling `timing`.

A worker measures in a process of its own; all that is concluded from its figures is pure.
"""
