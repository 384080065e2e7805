"""Who may do what with this installation, and who did: identities, roles, sessions, the trail."""
