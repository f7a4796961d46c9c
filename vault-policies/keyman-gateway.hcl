# keyman-gateway: the plane that sends requests to providers with stored keys. Only applications and users of keyman
# reach it, and it reaches providers.
#
# It opens one value at a time. It cannot seal, rotate or read the key's properties. An attacker who takes over this
# process can open the values of the database, but needs the database for it.
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
