"""Management API: one router per resource, and what their routes share."""
