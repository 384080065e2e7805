"""Online stores: interface, SQLite, Redis and Hopsworks. Imports no sibling."""
