"""Commands for feature definitions, joins and online stores. Imports `base` and below."""
