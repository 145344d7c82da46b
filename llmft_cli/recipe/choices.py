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
# By how much more, and all numbers below: the best of 92 trainings of SmolLM2-135M on nine sets of 90 to 14,700 rows
# (docs/recipe.md).
SHORT_TRAINING_STEPS, SHORT_TRAINING_RATE = 90, 2.3
POWER_OF_STEPS, LEAST_RATE = 0.4, 0.5

# Supervised tokens of all rows from which a step averages so many rows. With less to learn from, more steps are better.
ROWS_PER_STEP = ((25_000, 32), (10_000, 16), (0, 8))
MOST_TOKENS_PER_STEP = 32_768

# Few supervised tokens are learned in many passes; others are memorised in more than a few.
FEW_SUPERVISED_TOKENS = 25_000
STEPS_FOR_FEW, MOST_EPOCHS, ORDINARY_EPOCHS = 450, 10, 3
MOST_ROWS = 300_000

WARMUP = 0.05
MOST_EVALUATIONS, EVALUATIONS_PER_EPOCH = 10, 2
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
    if facts.supervised_tokens < FEW_SUPERVISED_TOKENS:
        passes = min(max(math.ceil(STEPS_FOR_FEW / steps_per_epoch), ORDINARY_EPOCHS), MOST_EPOCHS)
        why = "little to learn"
    else:
        passes = min(max(MOST_ROWS // facts.rows, 1), ORDINARY_EPOCHS)
        why = "more passes would memorise" if passes == ORDINARY_EPOCHS else "many rows"
    steps = format_count(passes * steps_per_epoch, "step")
    return Choice(passes, f"{why}; {steps}")


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
    evaluations = min(max(math.ceil(EVALUATIONS_PER_EPOCH * epochs), 1), MOST_EVALUATIONS)
    if not facts.held_out_rows:
        return Choice(1 / evaluations, f"{format_count(evaluations, 'checkpoint')}; no rows are held out")
    return Choice(1 / evaluations, f"{format_count(evaluations, 'evaluation')}; the best adapter is kept")


def early_stopping_patience(facts: Facts, epochs: float) -> Choice:
    if not facts.held_out_rows:
        return Choice(0, "no rows are held out")
    if epochs <= ORDINARY_EPOCHS:
        return Choice(0, "few passes, so all are made")
    return Choice(PATIENCE, "evaluations without a lower held-out loss end the training")
