"""Feature vectors of [Hopsworks](https://www.hopsworks.ai/), from its online store's REST server.

Spoken to as its own client, `hopsworks` 5.2, speaks to it, which is not needed for that.
"""
