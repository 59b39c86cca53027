"""`python -m twinlens`."""

from .cli import main

main()
