"""Sources of rows, cut into shards: files and databases. Imports no sibling."""
