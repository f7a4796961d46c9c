"""The JSON routes of the management plane: each calls an operation of `identity` or `keys`."""
