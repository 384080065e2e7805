"""Migrations of the state's schema, by Alembic. Imports no sibling."""
