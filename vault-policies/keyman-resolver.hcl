# keyman-resolver: the plane that gives a stored key to the application that may have it (not reachable from outside).
#
# It opens one value at a time. It cannot seal, rotate or read the key's properties: whoever takes over this process
# can open what the database holds, and must have the database for it.
#
# Parameters: ${mount} is the mount of the Transit engine, ${key} the name of the key.

# Open one value. Only these two parameters: a batch (`batch_input`) that partly fails answers 400 with the plaintexts
# of the others in its body, where an error log would find them.
path "${mount}/decrypt/${key}" {
  capabilities       = ["update"]
  allowed_parameters = {
    "ciphertext" = []
    "context"    = []
  }
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
