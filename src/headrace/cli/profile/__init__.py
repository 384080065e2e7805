"""Profiles of models and plans from them."""
