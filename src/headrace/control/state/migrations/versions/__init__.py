"""One module per step, named for its number; what was released is never changed."""
