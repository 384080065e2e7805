"""Inventory of the models in a folder. Imports its sibling `audit`."""
