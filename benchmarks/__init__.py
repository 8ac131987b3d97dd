"""The project's benchmark: see README.md beside this file."""
