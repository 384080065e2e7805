"""Redis and Valkey streams: connection, group member and Lua scripts."""
