"""How fast Headrace is beside what people build without it: `python -m bench`."""
