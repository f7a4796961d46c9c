"""The command `keyman`."""
