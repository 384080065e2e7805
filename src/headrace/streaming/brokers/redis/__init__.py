"""Redis and Valkey streams: connection, group member, scripts. Imports no sibling."""
