variable "mount" {
  description = "Where the Transit engine is mounted: KEYMAN_VAULT_MOUNT."
  type        = string
  default     = "transit"
}

variable "key" {
  description = "The name of the key: KEYMAN_VAULT_KEY."
  type        = string
  default     = "keyman"
}

variable "enable_approle" {
  description = "Whether to enable AppRole at auth/approle. Set it to false if it is already enabled."
  type        = bool
  default     = true
}

variable "networks" {
  description = "The networks, in CIDR notation, from which a role may log in and use its token. Other roles may from everywhere."
  type        = map(list(string))
  default     = {}

  validation {
    condition     = length(setsubtract(keys(var.networks), ["keyman-management", "keyman-resolver", "keyman-gateway", "keyman-rotator"])) == 0
    error_message = "The keys are of keyman-management, keyman-resolver, keyman-gateway and keyman-rotator."
  }

  validation {
    condition     = alltrue([for cidr in flatten(values(var.networks)) : can(cidrhost(cidr, 0))])
    error_message = "The values are lists of networks in CIDR notation, such as 10.1.2.0/24 or 10.1.3.7/32."
  }
}
