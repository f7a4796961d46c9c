# keyman-rotator: an operator's job that creates a new version of the key and rewraps the stored ciphertexts. Log in with
# it only for the time of that job.
#
# It sees ciphertexts before and after, never a plaintext, and cannot seal a value of its own.
#
# Parameters: ${mount} is the mount of the Transit engine, ${key} the name of the key.

# Create a new version. The old versions stay, so that what they sealed still opens.
path "${mount}/keys/${key}/rotate" {
  capabilities = ["update"]
}

# Rewrap with the newest version, in batches. The answer contains ciphertexts.
path "${mount}/rewrap/${key}" {
  capabilities = ["update"]
}

# Read the newest version, and the oldest one that can be opened.
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
