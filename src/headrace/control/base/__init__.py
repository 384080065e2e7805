"""Mechanisms that all rooms use: home folder, settings, event journal, faults, logs, processes."""
