"""Authentication, authorization, credentials and OIDC. Imports `asgi` and below."""
