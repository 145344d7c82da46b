"""A quick check whether a server answers; the client libraries' own retries take up to a minute."""

from __future__ import annotations

TIMEOUT_SECONDS = 2


def is_reachable(url: str) -> bool:
    """Whether an HTTP request to `url` is answered within two seconds, by the server or a proxy."""
    import requests

    try:
        requests.head(url, timeout=TIMEOUT_SECONDS)
    except requests.RequestException:
        return False
    return True


def hub_is_reachable() -> bool:
    """Whether the Hugging Face Hub answers; False with HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and is_reachable(constants.ENDPOINT)
