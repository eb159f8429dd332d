"""The bodies of the commands, each callable from Python."""
