"""Scraping, history, alerts, drift, recorded requests. Imports `rollouts` and below."""
