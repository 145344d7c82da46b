"""What can be wrong with rows that are well formed: counted, with a level and examples.

| check | level | finds |
|---|---|---|
| `secrets` | error | private keys, AWS, GitHub, GitLab, Slack, OpenAI, Hugging Face and Google keys, JSON web tokens |
| `passwords` | warning | `password = ...`, `api_key: ...` and URLs with a password, with a value that looks real |
| `emails` | warning | e-mail addresses, but those of example domains |
| `mojibake` | warning | UTF-8 read as Latin-1 or cp1252 (`Ã©`, `â€™`), replacement characters |
| `control_characters` | warning | control characters, invisible ones, and those that turn the direction of text |
| `refusals` | warning | answers that begin with "As an AI language model" or "I'm sorry, but I can't" |
| `empty_answers` | warning | answers that say nothing: "ok", "n/a", "...", "I don't know" |
| `copied_answers` | warning | an answer that is another message of its conversation, word for word |
| `repetitions` | warning | an answer most of which is one line, sentence or phrase, many times |
| `byte_tokens` | warning | a fifth of the tokens or more are pieces of characters: script or symbols are foreign to the model |
| `mostly_masked` | note | less than 5% of the tokens are learned from |
| `short_answers` | note | conversations whose answers are single words or numbers |
| `languages` | note | which languages a sample of rows is in, where there is more than one |
| `language_switch` | note | question and answer in different languages |

A warning that concerns less than 1 in 1000 rows is a note, but for `passwords` and `emails`, of which one is too many.
"""

from llmft_cli.data.checks.findings import LEVELS, Checks, Finding
from llmft_cli.data.checks.rows import CheckedRow
from llmft_cli.data.checks.tokens import byte_token_ids

__all__ = ["LEVELS", "CheckedRow", "Checks", "Finding", "byte_token_ids"]
