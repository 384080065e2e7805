"""Diagram of a running system, as Mermaid and SVG. Imports no sibling."""
