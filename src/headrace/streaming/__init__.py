"""log ▸ infer ▸ log: records are scored as they come, none is lost, and a bad one costs itself."""
