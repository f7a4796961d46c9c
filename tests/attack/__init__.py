"""Hostile requests in any number: `make attack` sends a million, the suite a sample."""
