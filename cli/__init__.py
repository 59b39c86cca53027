"""The command line: one module for each group of commands, and `app`, which lists them all."""

from .app import app, main

__all__ = ["app", "main"]
