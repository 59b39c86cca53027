"""`python -m twinlens`."""

from .command_line import main

main()
