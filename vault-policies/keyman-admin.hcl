# keyman-admin: sets up Vault for keyman: the Transit mount, the key, the policies of this directory, an AppRole for each
# process. It is for a person or a deployment job, for minutes. No process of keyman has it.
#
# It neither seals nor opens. But anyone who can write policies and create AppRoles can create a role that does. Give
# this policy only to those who already own Vault, and watch its use in Vault's audit log.
#
# Parameters: ${mount} is the mount of the Transit engine, ${key} the name of the key.

# List the engines, and mount one for keyman.
path "sys/mounts" {
  capabilities = ["read"]
}

path "sys/mounts/${mount}" {
  capabilities = ["create", "update"]
}

# Create the key with the only properties that keyman works with, and read them. Not export, back up or delete it.
path "${mount}/keys/${key}" {
  capabilities       = ["create", "read", "update"]
  allowed_parameters = {
    "type"                   = ["aes256-gcm96"]
    "derived"                = [true]
    "exportable"             = [false]
    "allow_plaintext_backup" = [false]
  }
}

# The same for the key of the fingerprints.
path "${mount}/keys/${key}-duplicates" {
  capabilities       = ["create", "read", "update"]
  allowed_parameters = {
    "type"                   = ["aes256-gcm96"]
    "derived"                = [true]
    "exportable"             = [false]
    "allow_plaintext_backup" = [false]
  }
}

# After a rotation, set the oldest version that can be opened. Nothing that would make the key exportable or deletable.
path "${mount}/keys/${key}/config" {
  capabilities       = ["update"]
  allowed_parameters = {
    "min_decryption_version" = []
    "min_encryption_version" = []
    "auto_rotate_period"     = []
  }
}

# Enable AppRole, the login for machines. Enabling an auth method needs `sudo`.
path "sys/auth" {
  capabilities = ["read"]
}

path "sys/auth/approle" {
  capabilities = ["create", "update", "sudo"]
}

# Let Vault's audit log show the id of keyman's request. It needs `sudo`.
path "sys/config/auditing/request-headers/X-Request-ID" {
  capabilities = ["create", "read", "update", "sudo"]
}

# Write the policies of this directory, by their names.
path "sys/policies/acl/keyman-*" {
  capabilities = ["create", "read", "update"]
}

# Create a role for each process, read its role ID, and issue a secret ID.
path "auth/approle/role/keyman-*" {
  capabilities = ["create", "read", "update"]
}

# Look up, renew and revoke its own token.
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
