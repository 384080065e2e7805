"""Home folder, settings, event journal, fault containment. Imports `state` and below."""
