"""The servers Headrace is compared with, each started as `python -m bench.servers.NAME`."""
