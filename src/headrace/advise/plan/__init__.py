"""Plans from a profile: capacity, and online, streaming or batch. Imports no sibling."""
