"""The host's GPUs: read in a process of its own, kept account of, put in quarantine, given to runs."""
