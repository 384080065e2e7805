"""Types that several rooms share: desired and observed state, records, audit log entries."""
