"""Programs that talk to a gateway with one SDK each. They run in the environment of the SDKs, .venv/sdks."""
