"""Commands about who may do what: users, keys, tokens, certificates, audit log."""
