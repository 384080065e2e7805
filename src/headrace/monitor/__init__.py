"""How well does it run, and what is off? SLOs, history, alerts and drift, all pure."""
