"""Inventory of the models in a folder."""
