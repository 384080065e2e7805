"""Plans from a profile: capacity of a load, and online, streaming or batch."""
