"""The formulas of the recipe. Each gives a value and, in a few words, its reason."""

from __future__ import annotations

import math
from typing import NamedTuple

from llmft_cli.recipe.facts import Facts
from llmft_cli.settings.quantities import format_count

# "LoRA Without Regret" (Thinking Machines, 2025): the best rate of LoRA is ten times that of full fine-tuning, for which
# they fit 5e-5 at a width of 2,000, and falls with the width to the power of 0.781 (Llama models). Short trainings take more.
RATE_OF_FULL_TRAINING, RATE_OF_LORA = 5e-5, 10
WIDTH_OF_RATE, POWER_OF_WIDTH = 2000, 0.781
# By how much more, and all numbers below: the best of some 250 trainings of SmolLM2-135M on 14 sets of 90 to 14,700 rows
# (docs/recipe.md).
SHORT_TRAINING_STEPS, SHORT_TRAINING_RATE = 190, 1.7
POWER_OF_STEPS, LEAST_RATE = 0.4, 0.5

# Supervised tokens of all rows from which a step averages so many rows. With less to learn from, more steps are better.
ROWS_PER_STEP = ((25_000, 32), (10_000, 16), (0, 8))
MOST_TOKENS_PER_STEP = 32_768

# Rows are memorised in more than a few passes, and the fewer there are, the sooner; but short answers, of which there are
# few tokens, need steps.
ORDINARY_EPOCHS, MOST_EPOCHS = 3, 5
FEW_SUPERVISED_TOKENS, SHORT_ANSWER_TOKENS = 25_000, 24
STEPS_FOR_FEW, ROWS_FOR_A_PASS = 450, 70
# The weights of so few rows hardly move otherwise.
LEAST_STEPS, MOST_EPOCHS_FOR_LEAST = 20, 10
MOST_ROWS = 300_000

WARMUP = 0.05
MOST_EVALUATIONS, EVALUATIONS_PER_EPOCH = 10, 2  # those of each of the first passes; then one each
PATIENCE = 3


class Choice(NamedTuple):
    """A value of the recipe and why it is that."""

    value: float
    reason: str


def rows_per_step(facts: Facts) -> Choice:
    size = next(rows for least, rows in ROWS_PER_STEP if facts.supervised_tokens >= least)
    fitting = 2 ** int(math.log2(max(1, MOST_TOKENS_PER_STEP * facts.rows / facts.tokens)))
    size = min(size, fitting, facts.rows)
    return Choice(size, f"for {facts.supervised_tokens:,} tokens to learn in {format_count(facts.rows, 'row')}")


def num_epochs(facts: Facts, steps_per_epoch: int) -> Choice:
    passes, why = ORDINARY_EPOCHS, "more passes would memorise"
    wanted = min(math.ceil(STEPS_FOR_FEW / steps_per_epoch), facts.rows // ROWS_FOR_A_PASS, MOST_EPOCHS)
    if steps_per_epoch * ORDINARY_EPOCHS < LEAST_STEPS:
        passes, why = min(math.ceil(LEAST_STEPS / steps_per_epoch), MOST_EPOCHS_FOR_LEAST), "few rows"
    elif is_little_to_learn(facts) and wanted > ORDINARY_EPOCHS:
        passes, why = wanted, "little to learn"
    elif facts.rows * ORDINARY_EPOCHS > MOST_ROWS:
        passes, why = max(MOST_ROWS // facts.rows, 1), "many rows"
    return Choice(passes, f"{why}; {format_count(passes * steps_per_epoch, 'step')}")


def is_little_to_learn(facts: Facts) -> bool:
    return facts.supervised_tokens < min(FEW_SUPERVISED_TOKENS, SHORT_ANSWER_TOKENS * facts.rows)


def learning_rate(facts: Facts, steps: float) -> Choice:
    """The peak rate of a training of so many steps, with two digits."""
    of_width = RATE_OF_FULL_TRAINING * RATE_OF_LORA * (WIDTH_OF_RATE / facts.hidden_size) ** POWER_OF_WIDTH
    of_steps = SHORT_TRAINING_RATE * min(1, (SHORT_TRAINING_STEPS / steps) ** POWER_OF_STEPS)
    rate = of_width * max(of_steps, LEAST_RATE)
    return Choice(float(f"{rate:.1e}"), f"for a model of width {facts.hidden_size:,} and {format_count(round(steps), 'step')}")


def warmup_ratio() -> Choice:
    return Choice(WARMUP, "of the steps")


def eval_steps(facts: Facts, epochs: float) -> Choice:
    """As a share of all steps. Without held-out rows, it is when checkpoints are saved."""
    evaluations = min(math.ceil(max(EVALUATIONS_PER_EPOCH * min(epochs, ORDINARY_EPOCHS), epochs)), MOST_EVALUATIONS)
    if not facts.held_out_rows:
        return Choice(1 / evaluations, f"{format_count(evaluations, 'checkpoint')}; no rows are held out")
    return Choice(1 / evaluations, f"{format_count(evaluations, 'evaluation')}; the best adapter is kept")


def early_stopping_patience(facts: Facts, epochs: float) -> Choice:
    if not facts.held_out_rows:
        return Choice(0, "no rows are held out")
    if epochs <= ORDINARY_EPOCHS:
        return Choice(0, "few passes, so all are made")
    return Choice(PATIENCE, "evaluations without a lower held-out loss end the training")
