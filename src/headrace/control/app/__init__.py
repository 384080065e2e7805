"""Process of a control plane: settings, wiring and life."""
