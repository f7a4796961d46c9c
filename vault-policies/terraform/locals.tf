# What needs no provider, so that it can be evaluated without one. A test holds it against keyman/vault/provision.py, which
# does the same without Terraform.

locals {
  # What every AppRole is set to; lives are in seconds.
  role_settings = {
    token_ttl               = 3600      # renewed at two thirds while the process lives
    token_max_ttl           = 86400     # a stolen token is dead within a day, however often it is renewed
    token_period            = 0         # with a period it would live for ever
    token_type              = "service" # a batch token can be neither renewed nor revoked
    token_no_default_policy = true      # the policy file is all that the token may do
    bind_secret_id          = true
  }

  # What the rotator's is set to beside that. A plane's secret ID has no end of its own: a restart at night needs it.
  rotator_settings = {
    token_max_ttl = 3600
    secret_id_ttl = 86400 # a rotation is a job of minutes, and nobody restarts it next week
  }

  # Whoever runs Terraform logs in as themselves: keyman-admin is a policy without an AppRole.
  roles = {
    keyman-management = local.role_settings
    keyman-resolver   = local.role_settings
    keyman-rotator    = merge(local.role_settings, local.rotator_settings)
  }

  policies = {
    for name in concat(keys(local.roles), ["keyman-admin"]) :
    name => templatefile("${path.module}/../${name}.hcl", { mount = var.mount, key = var.key })
  }
}
