# Creates the same state as `keyman vault setup`, for users of Terraform or OpenTofu. Use one or the other.

resource "vault_mount" "transit" {
  path = var.mount
  type = "transit"

  lifecycle {
    prevent_destroy = true # without the key, no stored value can be opened
  }
}

resource "vault_transit_secret_backend_key" "keyman" {
  backend                = vault_mount.transit.path
  name                   = var.key
  type                   = "aes256-gcm96"
  derived                = true # otherwise Vault ignores the context, and nothing binds a value to its row
  exportable             = false
  allow_plaintext_backup = false
  deletion_allowed       = false

  lifecycle {
    prevent_destroy = true
    # A rotation changes it, and a later `apply` must not allow old versions again.
    ignore_changes = [min_decryption_version, min_encryption_version, auto_rotate_period]
  }
}

# Computes fingerprints of values, which show that a user has stored the same value before.
resource "vault_transit_secret_backend_key" "duplicates" {
  backend                = vault_mount.transit.path
  name                   = "${var.key}-duplicates"
  type                   = "aes256-gcm96"
  derived                = true
  exportable             = false
  allow_plaintext_backup = false
  deletion_allowed       = false

  lifecycle {
    ignore_changes = [min_decryption_version, min_encryption_version, auto_rotate_period]
  }
}

resource "vault_policy" "keyman" {
  for_each = local.policies

  name   = each.key
  policy = each.value
}

resource "vault_auth_backend" "approle" {
  count = var.enable_approle ? 1 : 0

  type = "approle"
  path = "approle"
}

# Lets Vault's audit log show the id of keyman's request.
resource "vault_audit_request_header" "request_id" {
  name = "X-Request-ID"
  hmac = false
}

resource "vault_approle_auth_backend_role" "keyman" {
  for_each   = local.roles
  depends_on = [vault_auth_backend.approle]

  backend                 = "approle"
  role_name               = each.key
  token_policies          = [vault_policy.keyman[each.key].name]
  token_ttl               = each.value.token_ttl
  token_max_ttl           = each.value.token_max_ttl
  token_period            = each.value.token_period
  token_type              = each.value.token_type
  token_no_default_policy = each.value.token_no_default_policy
  bind_secret_id          = each.value.bind_secret_id
  secret_id_ttl           = lookup(each.value, "secret_id_ttl", 0)
  token_bound_cidrs       = lookup(var.networks, each.key, null)
  secret_id_bound_cidrs   = lookup(var.networks, each.key, null)
}
