# keyman-rotator: an operator's job that makes a new version of the key and brings the stored ciphertexts to it. Log in
# with it for as long as that takes.
#
# It sees ciphertexts before and after, never a plaintext, and cannot seal a value of its own.
#
# Parameters: ${mount} is the mount of the Transit engine, ${key} the name of the key.

# Make a new version. The old ones stay, so that what they sealed still opens.
path "${mount}/keys/${key}/rotate" {
  capabilities = ["update"]
}

# Re-encrypt with the newest version, in batches. The answer holds ciphertexts.
path "${mount}/rewrap/${key}" {
  capabilities = ["update"]
}

# Which version is the newest, and which the oldest that may still be opened.
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
