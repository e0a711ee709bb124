"""The command line: what is printed, what is said on stderr, which exit code."""
