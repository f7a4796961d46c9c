"""The jobs that create a stack of containers on one machine: a certificate authority, passwords, a Vault.

They hold in files what a company holds in hardware, in an operator's head or in a cloud's key service: compose.yaml
says which volume has what, and docs/guide/deployment.md what to do instead in production.
"""
