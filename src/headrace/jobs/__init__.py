"""data set ▸ infer ▸ data set: resumable, scheduled, the same answers as the endpoint's."""
