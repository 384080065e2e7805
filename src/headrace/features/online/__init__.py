"""Online stores: the interface, and SQLite, Redis and Hopsworks."""
