"""The JSON routes of the management plane: thin skins over the operations of accounts and keys."""
