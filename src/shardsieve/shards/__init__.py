"""Tar shards: their names, their fingerprints, and where each sample lies in them."""
