# keyman-admin: sets Vault up for keyman: the Transit mount, the key, the policies of this directory, an AppRole for each
# process. A person's or a deployment job's, for minutes; no process of keyman has it.
#
# It neither seals nor opens. But whoever may write policies and make AppRoles can give themselves a role that does:
# give this one to those who already own Vault, and watch its use in Vault's audit log.
#
# Parameters: ${mount} is the mount of the Transit engine, ${key} the name of the key.

# Which engines there are, and one more for keyman.
path "sys/mounts" {
  capabilities = ["read"]
}

path "sys/mounts/${mount}" {
  capabilities = ["create", "update"]
}

# Make the key, of the one nature that keyman works with; read what it is. Not export, back up or delete it.
path "${mount}/keys/${key}" {
  capabilities       = ["create", "read", "update"]
  allowed_parameters = {
    "type"                   = ["aes256-gcm96"]
    "derived"                = [true]
    "exportable"             = [false]
    "allow_plaintext_backup" = [false]
  }
}

# After a rotation: the oldest version that may still be opened. Nothing that would let the key out or be deleted.
path "${mount}/keys/${key}/config" {
  capabilities       = ["update"]
  allowed_parameters = {
    "min_decryption_version" = []
    "min_encryption_version" = []
    "auto_rotate_period"     = []
  }
}

# The login for machines. Enabling a login method takes `sudo`.
path "sys/auth" {
  capabilities = ["read"]
}

path "sys/auth/approle" {
  capabilities = ["create", "update", "sudo"]
}

# That the audit log tells by which id keyman knows the request that a call was made for. It takes `sudo`.
path "sys/config/auditing/request-headers/X-Request-ID" {
  capabilities = ["create", "read", "update", "sudo"]
}

# The policies of this directory, by their names.
path "sys/policies/acl/keyman-*" {
  capabilities = ["create", "read", "update"]
}

# A role for each process, its id, and a secret id to hand over.
path "auth/approle/role/keyman-*" {
  capabilities = ["create", "read", "update"]
}

# Its own token: is it alive, live longer, die.
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
