"""Access commands: users, keys, tokens, certificates, audit log."""
