"""The payload log: sampled requests and answers of endpoints, in files."""
