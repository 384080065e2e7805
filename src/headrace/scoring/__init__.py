"""Runs rows through a model as its endpoint would: what serving, streams and jobs share."""
