"""Commands for users, keys, tokens, certificates and audit log. Imports `base` and below."""
