"""Options, output, targets and files that several commands share."""
