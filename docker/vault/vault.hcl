# One node with its own durable storage. In production, use three or five nodes, or a managed Vault.
storage "raft" {
  path                   = "/vault/file"
  node_id                = "vault"
  performance_multiplier = 1 # higher values are for distant nodes; a single node has no other to wait for
}

listener "tcp" {
  address         = "0.0.0.0:8200"
  tls_cert_file   = "/tls/tls.pem"
  tls_key_file    = "/tls/tls.pem"
  tls_min_version = "tls12"
}

api_addr     = "https://vault:8200"
cluster_addr = "https://vault:8201"
ui           = false

# Locking memory needs a capability, and this container has none. Use no swap, or encrypted swap, on the machine.
disable_mlock = true
