# No secret IDs, because anyone who can read Terraform's state would have them. `keyman vault secret-id ROLE` issues them,
# wrapped.

output "role_ids" {
  description = "Each role's KEYMAN_VAULT_ROLE_ID."
  value       = { for name, role in vault_approle_auth_backend_role.keyman : name => role.role_id }
  sensitive   = true
}
