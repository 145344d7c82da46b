"""Whether Weights & Biases can be used here, determined without importing wandb."""

from __future__ import annotations

import netrc
import os
from typing import Literal
from urllib.parse import urlparse

from llmft_cli.base.network import is_reachable

DEFAULT_SERVER = "https://api.wandb.ai"
TRUE = ("1", "true", "yes", "on")

Login = Literal["logged in", "no account", "offline"]


def login() -> Login:
    """Whether an account is set up, by `wandb login` or WANDB_API_KEY; "offline" if WANDB_MODE is not online."""
    if os.environ.get("WANDB_MODE", "online") != "online":
        return "offline"
    host = urlparse(server()).hostname or server()
    return "logged in" if os.environ.get("WANDB_API_KEY") or in_netrc(host) else "no account"


def is_disabled() -> bool:
    """Whether WANDB_MODE=disabled, or WANDB_DISABLED=true as in transformers 4, turns W&B off."""
    return os.environ.get("WANDB_MODE") == "disabled" or os.environ.get("WANDB_DISABLED", "").lower() in TRUE


def can_log_online() -> bool:
    """Whether there is an account and its server answers."""
    return login() == "logged in" and is_reachable(server())


def server() -> str:
    return os.environ.get("WANDB_BASE_URL", DEFAULT_SERVER)


def in_netrc(host: str) -> bool:
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
