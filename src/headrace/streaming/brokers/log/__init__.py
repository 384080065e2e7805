"""Embedded log: a broker in a folder of one machine. Imports no sibling."""
