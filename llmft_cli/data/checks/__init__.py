"""Checks on well-formed rows: what may still be wrong, counted, with a level and examples.

| check | level | finds |
|---|---|---|
| `secrets` | error | private keys, AWS, GitHub, GitLab, Slack, OpenAI, Hugging Face and Google keys, JSON web tokens |
| `passwords` | warning | `password = ...`, `api_key: ...` and URLs with a password, with a value that looks real |
| `emails` | warning | e-mail addresses, except those of example domains |
| `mojibake` | warning | UTF-8 read as Latin-1 or cp1252 (`Ã©`, `â€™`), replacement characters |
| `control_characters` | warning | control characters, invisible ones, and those that change the direction of text |
| `rendered_text` | warning | markers of a chat template in a text: `<|im_start|>`, `[INST]`, `### Human:` |
| `placeholders` | warning | messages with an unfilled `{{name}}`, except in code |
| `json_documents` | note | documents that are JSON |
| `refusals` | warning | answers that begin with "As an AI language model" or "I'm sorry, but I can't" |
| `empty_answers` | warning | answers that say nothing: "ok", "n/a", "...", "I don't know" |
| `copied_answers` | warning | an answer that repeats another message of its conversation word for word |
| `repetitions` | warning | an answer that is mostly one line, sentence or phrase, repeated |
| `byte_tokens` | warning | at least a fifth of the tokens are parts of characters: the tokenizer lacks the script |
| `foreign_tokens` | warning | token ids, in a sample of the rows, that look like those of another tokenizer |
| `mostly_masked` | note | less than 5% of the tokens are supervised |
| `short_answers` | note | conversations whose answers are single words or numbers |
| `languages` | note | the languages of a sample of rows, if there are several |
| `language_switch` | note | question and answer in different languages |

A warning about fewer than 1 in 1000 rows becomes a note, except `passwords` and `emails`, where one is too many.
"""

from llmft_cli.data.checks.findings import LEVELS, Checks, Finding
from llmft_cli.data.checks.rows import CheckedRow
from llmft_cli.data.checks.tokens import byte_token_ids

__all__ = ["LEVELS", "CheckedRow", "Checks", "Finding", "byte_token_ids"]
