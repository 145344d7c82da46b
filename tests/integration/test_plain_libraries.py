"""What a run leaves is plain PEFT and plain transformers, and llmft answers as they do."""

import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

PROMPTS = 10
ONE_BY_ONE = 10  # answered without a batch
NEW_TOKENS = 32


@pytest.fixture(scope="module")
def questions(workspace) -> list[str]:
    lines = (workspace / "chat.jsonl").read_text().splitlines()[:PROMPTS]
    return [json.loads(line)["messages"][0]["content"] for line in lines]


def greedy_answers(model, tokenizer, questions, at_once=1) -> list[str]:
    tokenizer.padding_side = "left"
    answers = []
    for start in range(0, len(questions), at_once):
        chats = [[{"role": "user", "content": question}] for question in questions[start : start + at_once]]
        options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True, "padding": at_once > 1}
        prompts = tokenizer.apply_chat_template(chats, **options)
        generated = model.generate(**prompts, max_new_tokens=NEW_TOKENS, do_sample=False)
        new = generated[:, prompts["input_ids"].shape[1] :]
        answers += [answer.strip() for answer in tokenizer.batch_decode(new, skip_special_tokens=True)]
    return answers


def test_adapter_on_the_plain_base_and_merged_model_give_the_same_greedy_answers(
    workspace, merged, builtin_model_dir, questions
):
    run = workspace / "runs/brindle"
    tokenizer = AutoTokenizer.from_pretrained(run / "merged")
    base = AutoModelForCausalLM.from_pretrained(builtin_model_dir, dtype=torch.float32)
    from_adapter = greedy_answers(PeftModel.from_pretrained(base, run / "adapter").eval(), tokenizer, questions, PROMPTS)
    folded = AutoModelForCausalLM.from_pretrained(run / "merged", dtype=torch.float32)
    assert greedy_answers(folded, tokenizer, questions, PROMPTS) == from_adapter


def test_chat_answers_as_plain_peft_on_the_same_quantised_base(llmft, workspace, trained, builtin_model_dir, questions):
    """In the type that the run was trained in; in fp32 from the values of the 4-bit weights, not from the original ones."""
    run = workspace / "runs/brindle"
    dtype = getattr(torch, trained["plan"]["compute_dtype"])
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    base = AutoModelForCausalLM.from_pretrained(builtin_model_dir, dtype=dtype, quantization_config=nf4, device_map={"": "cpu"})
    if dtype == torch.float32:  # bitsandbytes would dequantise all weights for each token
        base = base.dequantize()
    model = PeftModel.from_pretrained(base, run / "adapter").eval()
    questions = questions[:ONE_BY_ONE]
    expected = greedy_answers(model, AutoTokenizer.from_pretrained(run / "tokenizer"), questions)
    lines = "".join(f"/reset\n{question}\n" for question in questions)
    flags = ("--max-new-tokens", NEW_TOKENS, "--device", "cpu", "--quiet")
    done = llmft("chat", "runs/brindle", *flags, folder=workspace, stdin=lines)
    assert done.stdout.splitlines() == expected
