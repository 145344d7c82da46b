"""The settings of prepare, defined once with their defaults, units, ranges and help texts; `Config` has their types."""

from __future__ import annotations

from llmft_cli.settings import parsers
from llmft_cli.settings.setting import BASE, data_setting

FORMAT = data_setting(
    "auto",
    "Format of the rows. auto detects it from their content.",
    primary="prepare",
    choices=("auto", "messages", "sharegpt", "alpaca", "prompt-completion", "question-answer", "text", "tokens"),
)
COLUMNS = data_setting(
    None,
    "Your column names, as in prompt=q,completion=a. The name that llmft expects comes first.",
    primary="prepare",
    metavar="<names>",
    is_list=True,
    is_mapping=True,
)
ENCODING = data_setting(
    "auto",
    "Encoding of text files, as in gb18030 or cp1252. auto is UTF-8, or what the bytes of a file show beyond doubt.",
    **parsers.ENCODING,
)
DATASET_SPLIT = data_setting("train", "Split of a Hub dataset to read. Local files have no splits.")
CHAT_TEMPLATE = data_setting(
    None,
    "Chat template: a Jinja file, or plain. Needed for chat rows if the model has no template.",
    metavar="<file>",
    suggestions=("plain",),
)
MAX_SEQ_LENGTH = data_setting(
    2048,
    "Longest row, in tokens. The default is reduced to the model's positions if these are fewer.",
    BASE,
    primary="gpu-check prepare",
    minimum=8,
)
ON_OVERLENGTH = data_setting(
    "drop", "What to do with longer rows.", primary="prepare", choices=("drop", "truncate", "split", "error")
)
TRAIN_ON = data_setting(
    "assistant",
    "Tokens to learn. assistant: every answer; last: the last answer of each conversation; all: every token.",
    primary="prepare",
    choices=("assistant", "last", "all"),
)
ROWS_PER_ANSWER = data_setting(
    "auto",
    "A row of its own for each answer. auto: where the chat template renders the answer in another way once others "
    "follow, as reasoning models' do; off: one row, whatever the template makes of its earlier answers.",
    choices=("auto", "on", "off"),
)
ON_UNRENDERED = data_setting(
    "reject",
    "Rows of which the chat template leaves out a part, such as thinking or tools.",
    choices=("reject", "keep"),
)
MERGE_TURNS = data_setting(
    False, "Join neighbouring messages of the same role. For chat templates that require alternating roles."
)
VAL_SIZE = data_setting(
    0.05,
    "Rows held out: a share or number. Write a share as 0.05 or 5%.",
    primary="prepare",
    minimum=0,
    **parsers.ROWS,
)
MAX_REJECTED = data_setting(
    0.05,
    "Reject the data if more than this share of the rows is bad, as in 5%.",
    minimum=0,
    maximum=1,
    **parsers.SHARE,
)
WEIGHTS = data_setting(
    None,
    "How often to use the training rows of each source, in order. 2,0.5 doubles the first and halves the second.",
    **parsers.WEIGHTS,
)
MAX_ROWS = data_setting(
    None,
    "Maximum number of rows to read from each source. One number for all sources, or one for each (1000,500).",
    **parsers.ROW_COUNTS,
)
NEAR_DUPLICATES = data_setting(True, "Find rows that are nearly the same. They are kept on the same side of the split.")
STRICT = data_setting(False, "Reject the data if a check reports an error or a warning.")
