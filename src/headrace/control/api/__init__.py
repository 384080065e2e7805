"""Management API: one router per resource. Imports `plane` and below."""
