"""How fast is a model here, what limits it, and how should it be served?

A worker measures in a process of its own; all that is concluded from its figures is pure.
"""
