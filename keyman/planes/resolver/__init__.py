"""The plane that gives a key back: the only one whose Vault role may decrypt. Not to be reached from outside."""
