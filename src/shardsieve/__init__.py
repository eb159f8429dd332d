"""shardsieve."""
