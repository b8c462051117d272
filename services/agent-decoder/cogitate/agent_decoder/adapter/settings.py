"""What the adapter is told: from the knobs, with the key read from where it is kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cogitate.agent_decoder.config import AgentDecoderConfig
from cogitate.kit.config import ConfigError


@dataclass(frozen=True, slots=True)
class Settings:
    """Where the server is and how it is called. The key never shows in a repr."""

    base_url: str
    model: str  # the server's name of it
    key: str = field(default="", repr=False)
    other_names: tuple[str, ...] = ()  # names that replies may carry as well
    connect_s: float = 5.0
    first_token_s: float = 60.0
    token_gap_s: float = 20.0
    max_calls: int = 16
    max_retries: int = 2
    max_retry_wait_s: float = 20.0


def read(config: AgentDecoderConfig, env: Mapping[str, str] = os.environ) -> Settings:
    """The settings. Raises ConfigError, which never shows a key."""
    if not config.openai_base_url.startswith(("http://", "https://")):
        raise ConfigError(
            "the engine `openai` needs --openai-base-url, such as http://127.0.0.1:8080/v1"
        )
    return Settings(
        base_url=config.openai_base_url.rstrip("/"),
        model=config.openai_model or config.model,
        key=_key(config, env),
        other_names=config.openai_reply_models,
        connect_s=config.openai_connect_s,
        first_token_s=config.openai_first_token_s,
        token_gap_s=config.openai_token_gap_s,
        max_calls=config.openai_max_call_count,
        max_retries=config.openai_max_retry_count,
        max_retry_wait_s=config.openai_max_retry_wait_s,
    )


def _key(config: AgentDecoderConfig, env: Mapping[str, str]) -> str:
    if config.openai_key_file:
        try:
            return Path(config.openai_key_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            raise ConfigError("the file of --openai-key-file cannot be read") from None
    if not config.openai_key_variable:
        return ""
    key = env.get(config.openai_key_variable, "").strip()
    if not key:
        raise ConfigError("the environment variable that --openai-key-variable names is not set")
    return key
