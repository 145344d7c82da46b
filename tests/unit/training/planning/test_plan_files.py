"""Reading plans from files, and the errors for invalid ones."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from llmft_cli.base.errors import ConfigError
from llmft_cli.training.plan import Plan
from llmft_cli.training.planning.plan_files import read_plan

PLAIN = {"batch_size": 2, "gradient_accumulation_steps": 8, "checkpointed_layers": 0, "optim": "adamw_8bit"}


@pytest.mark.parametrize(
    "plan", [Plan(**PLAIN), Plan(1, 1, 80, "paged_adamw_8bit", True), Plan(4, 1, 0, "sgd", dequantized_weights=True)]
)
def test_a_written_plan_is_the_plan_that_is_read(tmp_path: Path, plan: Plan) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(asdict(plan)))
    assert read_plan(path) == plan


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("batch_size: 2\n", "is not a plan: it must have batch_size, gradient_accumulation_steps, checkpointed_layers, optim"),
        (yaml.safe_dump(PLAIN | {"learning_rate": 1}), "is not a plan"),
        ("- 1\n- 2\n", "must contain `key: value` lines, not a list"),
        ("", "is not a plan"),
        ("batch_size: [1\n", "is not valid YAML"),
        (b"\xff\xfe\xfa", "is not valid YAML"),
        (yaml.safe_dump(PLAIN | {"batch_size": True}), "batch_size in .*: 'true' is not a whole number of 1 or more"),
        (yaml.safe_dump(PLAIN | {"optim": 8}), "optim in .*: '8' is not the name of an optimizer"),
        (yaml.safe_dump(PLAIN | {"batch_size": 0}), "batch_size in .*: '0' is not a whole number of 1 or more"),
        (yaml.safe_dump(PLAIN | {"gradient_accumulation_steps": [8]}), r"\['8'\] is not a whole number of 1 or more"),
        (yaml.safe_dump(PLAIN | {"gradient_accumulation_steps": 1.5}), "'1.5' is not a whole number of 1 or more"),
        (yaml.safe_dump(PLAIN | {"dequantized_weights": 1}), "dequantized_weights in .*: '1' is not true or false"),
        (
            yaml.safe_dump(PLAIN | {"learning_rate": 1}),
            "may have embeddings_on_cpu, dequantized_weights, activation_offloading, and no other keys",
        ),
        (yaml.safe_dump(PLAIN) + "batch_size: 2\n", "it has a key twice"),
        (yaml.safe_dump(PLAIN | {"optim": "adamw"}), "optim in .*: 'adamw' is not the name of an optimizer"),
        (yaml.safe_dump(PLAIN | {"batch_size": 10**12}), "'1000000000000' is not a whole number of 1 or more"),
        (yaml.safe_dump(PLAIN | {"batch_size": {1: [2]}}), "is nested"),
        ("batch_size: !!python/object:os.system ls\n", "has the tag !!python/object:os.system"),
        ("a: " + "[" * 10_000, "is nested too deeply"),
        (
            yaml.safe_dump(PLAIN | {"checkpointed_layers": -1}),
            "checkpointed_layers in .*: '-1' is not a whole number of 0 or more",
        ),
    ],
)
def test_what_is_no_plan_is_told(tmp_path: Path, content: str | bytes, complaint: str) -> None:
    path = tmp_path / "plan.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=complaint) as raised:
        read_plan(path)
    assert raised.value.exit_code == 2
