"""The SDK of Amazon Bedrock, boto3, which writes `:` in the id of a model as `%3A`."""

from __future__ import annotations

import os
from typing import Any

import boto3
from botocore.config import Config

from tests.planes.gateway.sdks.scenes import GATEWAY, play

os.environ["AWS_BEARER_TOKEN_BEDROCK"] = os.environ["PERSONAL"]


def client(url: str) -> Any:
    config = Config(retries={"total_max_attempts": 1})
    return boto3.client("bedrock-runtime", region_name="us-east-1", endpoint_url=f"{url}/aws-bedrock", config=config)


def converse(client: Any, model: str) -> object:
    messages = [{"role": "user", "content": [{"text": "Hello"}]}]
    return client.converse(modelId=model, messages=messages)["output"]["message"]["content"][0]["text"]


def over_https(model: str) -> object:
    """Ask as one does behind a proxy that ends TLS: boto3 means https, and the request arrives over http."""

    def end_tls(request: Any, **_others: object) -> None:
        request.url = request.url.replace("https://", "http://", 1)

    own = client(GATEWAY.replace("http://", "https://"))
    own.meta.events.register("before-send.bedrock-runtime", end_tls)
    return converse(own, model)


if __name__ == "__main__":
    play(
        {
            "over http": lambda: converse(client(GATEWAY), "amazon.nova-x"),
            "without a colon": lambda: over_https("amazon.nova-x"),
            "with a colon": lambda: over_https("amazon.nova-x-v1:0"),
        }
    )
