"""Plans from a profile: capacity of a load, and the choice of online, streaming or batch."""
