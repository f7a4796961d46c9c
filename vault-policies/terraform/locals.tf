# These values need no provider, so they can be evaluated without one. A test compares them with
# keyman/vault/provision.py, which does the same without Terraform.

locals {
  # The settings of every AppRole. Times are in seconds.
  role_settings = {
    token_ttl               = 3600      # the process renews it at two thirds
    token_max_ttl           = 86400     # a stolen token expires within a day, however often it is renewed
    token_period            = 0         # with a period, a token could be renewed forever
    token_type              = "service" # a batch token can be neither renewed nor revoked
    token_no_default_policy = true      # the token has only the rights of the policy file
    bind_secret_id          = true
  }

  # Further settings of the rotator. The secret ID of a plane does not expire, because a restart needs it at any time.
  rotator_settings = {
    token_max_ttl = 3600
    secret_id_ttl = 86400 # a rotation takes minutes, and nobody needs its secret ID a week later
  }

  # The user of Terraform has their own login: keyman-admin is a policy without an AppRole.
  roles = {
    keyman-management = local.role_settings
    keyman-resolver   = local.role_settings
    keyman-gateway    = local.role_settings
    keyman-rotator    = merge(local.role_settings, local.rotator_settings)
  }

  policies = {
    for name in concat(keys(local.roles), ["keyman-admin"]) :
    name => templatefile("${path.module}/../${name}.hcl", { mount = var.mount, key = var.key })
  }
}
