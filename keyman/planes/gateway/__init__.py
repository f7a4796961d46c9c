"""The gateway plane: sends requests to providers with a stored key, which only the provider sees."""
