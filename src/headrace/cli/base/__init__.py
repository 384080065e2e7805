"""Options, output, targets and files that command groups share. Imports no sibling."""
