"""Users, their sessions and their personal access tokens; applications and theirs."""
