"""Make one call to a provider with a user's key. Set KEYMAN_RESOLVER_URL and KEYMAN_APP_TOKEN."""

import os

import httpx

from keyman.client import Resolver

PROVIDER = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")

with Resolver() as resolver:
    key = resolver.resolve(user_id=1, service="OPENAI", purpose="List of models")

models = httpx.get(f"{PROVIDER}/models", headers={"Authorization": f"Bearer {key.reveal()}"})
print(key, models.status_code)
