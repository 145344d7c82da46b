"""Chat templates that do not come with the model: from a file, or llmft's plain one."""

from __future__ import annotations

from pathlib import Path

from llmft_cli.base.errors import ConfigError

PLAIN = "plain"
OTHERS = "give a Jinja file, use plain text turns with --chat-template plain, or leave it out to use the model's own"
# Turns in plain text; each answer ends with the tokenizer's end of text, so it works for any model that has one.
PLAIN_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '### ' + message.role | capitalize + ':\n' + message.content | trim }}"
    "{% if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)


def read_template(name: str) -> str:
    """The chat template in a file, or `plain`.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or is blank.
    """
    if name == PLAIN:
        return PLAIN_TEMPLATE
    try:
        # A byte order mark would be rendered into every row.
        template = Path(name).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        problem = f"the chat template {name} is not UTF-8 (byte {error.object[error.start]:#04x})"
        raise ConfigError(problem, "save it as UTF-8") from error
    # ValueError: a NUL byte in the name; RuntimeError: there is no such user.
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the chat template {name!r} cannot be read: {getattr(error, 'strerror', error)}", OTHERS) from error
    if not template.strip():
        raise ConfigError(f"the chat template {name} is empty", OTHERS)
    return template
