# keyman-management: the plane that faces the internet (`keyman serve`).
#
# It seals values and rewraps them with a newer version of the key. It cannot open one: no path here
# answers with a plaintext, and none may be added. An attacker who takes over this process, its token
# or its AppRole gets no stored key.
#
# Parameters: ${mount} is the mount of the Transit engine, ${key} the name of the key.

# Seal a value. `update` and not `create`: with `create`, Vault would create a missing key with default
# settings (not derived), and nothing would bind the sealed values to their rows.
path "${mount}/encrypt/${key}" {
  capabilities = ["update"]
}

# Check, with the sentinel, that this is the key that sealed the database; rewrap after a rotation.
# The answer contains a ciphertext, never a plaintext.
path "${mount}/rewrap/${key}" {
  capabilities = ["update"]
}

# Compute the fingerprint of a value, which shows that its owner has stored it before. The key does nothing else, and
# its answers open nothing. Only `KEYMAN_DUPLICATES=on` uses it.
path "${mount}/hmac/${key}-duplicates/sha2-256" {
  capabilities = ["update"]
}

# Read the key's properties (derived, type, exportable, versions). The key itself never leaves Vault.
path "${mount}/keys/${key}" {
  capabilities = ["read"]
}

# Look up, renew and revoke its own token. The role is created without the `default` policy.
path "auth/token/lookup-self" {
  capabilities = ["read"]
}

path "auth/token/renew-self" {
  capabilities = ["update"]
}

path "auth/token/revoke-self" {
  capabilities = ["update"]
}

# Read its own capabilities. `keyman doctor` uses this to find missing and excessive rights.
path "sys/capabilities-self" {
  capabilities = ["update"]
}
