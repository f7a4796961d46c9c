"""The resolver plane: only its Vault role may decrypt. It must not be reachable from outside."""
