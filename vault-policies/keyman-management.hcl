# keyman-management: the plane that faces the internet (`keyman serve`).
#
# It seals values and brings them to a newer version of the key. It cannot open one: there is no
# path here that answers with a plaintext, and none may be added. Whoever takes over this process,
# its token or its AppRole gets no stored key.
#
# Parameters: ${mount} is the mount of the Transit engine, ${key} the name of the key.

# Seal a value. `update` and not `create`: with `create` a missing key would be made on the spot, with
# default settings (not derived), and values would be sealed with nothing that binds them to their row.
path "${mount}/encrypt/${key}" {
  capabilities = ["update"]
}

# Prove, with the sentinel, that this is the key that sealed the database; re-encrypt after a rotation.
# The answer holds a ciphertext, never a plaintext.
path "${mount}/rewrap/${key}" {
  capabilities = ["update"]
}

# Read the key's properties (derived, type, exportable, versions). The key itself never leaves Vault.
path "${mount}/keys/${key}" {
  capabilities = ["read"]
}

# Its own token: is it alive, live longer, die. The role is made without the `default` policy.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# What it may do, asked of itself: how `keyman doctor` finds that it may do too little, or too much.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
