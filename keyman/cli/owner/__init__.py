"""The commands of people who own keys. They ask the API of a keyman, and need only the extra [cli]."""
