"""Files that nobody sound would write, and what the command line makes of each of them."""
