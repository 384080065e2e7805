"""Stream inference: records of a log are scored and answered. Imports `scoring` and below."""
