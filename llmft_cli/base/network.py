"""Whether a server answers, told quickly; clients' own retries take up to a minute."""

from __future__ import annotations

TIMEOUT_SECONDS = 2


def is_reachable(url: str) -> bool:
    """Whether anything answers an HTTP request to `url` within two seconds, proxies included."""
    import requests

    try:
        requests.head(url, timeout=TIMEOUT_SECONDS)
    except requests.RequestException:
        return False
    return True


def hub_is_reachable() -> bool:
    """Whether the Hugging Face Hub may be asked (HF_HUB_OFFLINE) and answers."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and is_reachable(constants.ENDPOINT)
