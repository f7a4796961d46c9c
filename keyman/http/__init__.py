"""What every plane shares over HTTP. No plane is imported here."""
