"""Byte ranges: reading them, and counting what was read."""
