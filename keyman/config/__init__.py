"""Settings: read once from the environment, each group of variables in a module."""
