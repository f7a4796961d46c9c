# One node with its own durable storage. Production has three or five nodes, or a Vault that somebody else runs.
storage "raft" {
  path                   = "/vault/file"
  node_id                = "vault"
  performance_multiplier = 1 # for nodes far apart; one alone has nobody to wait for
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

# Locking memory takes a capability, and this container has none. Have no swap, or encrypted swap, on the machine.
disable_mlock = true
