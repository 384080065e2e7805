"""Commands about features of entities."""
