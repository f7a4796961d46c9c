"""The management plane: it faces the internet and cannot decrypt."""
