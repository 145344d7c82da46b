from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmft_cli.data.checks import CheckedRow, Checks, Finding, byte_token_ids
from llmft_cli.data.checks.findings import MEANINGS
from llmft_cli.data.checks.languages import language
from llmft_cli.data.checks.secrets import masked

PROSE = "The lamp on the hill turns all night, and the keeper counts the ships that answer."
# Random characters made for these tests, joined here so that no secret scanner flags this file.
SECRETS = {
    "aws": "AKIA" + "Z7QK4MXN2WVB9TRC",
    "github": "ghp_" + "a8Kd93jfLq02Mz7Xw5Tn1Vb6Rc4Ys0HgPe2U",
    "github-fine": "github_pat_" + "11BQZ7Y0a8Kd93jfLq02Mz_7Xw5Tn1Vb6Rc4Ys0HgPe2UoIi",
    "gitlab": "glpat-" + "Kd93jfLq02Mz7Xw5Tn1V",
    "slack": "xoxb-" + "2938475610-9283746510-Kd93jfLq02Mz7Xw5",
    "openai": "sk-proj-" + "Kd93jfLq02Mz7Xw5Tn1Vb6Rc4Ys0HgPe2U",
    "huggingface": "hf_" + "KdjfLqMzXwTnVbRcYsHgPeUoIiAaBbCcDd",
    "google": "AIza" + "SyKd93jfLq02Mz7Xw5Tn1Vb6Rc4Ys0HgPe2",
    "token": "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiI5MjgzNzQ2NSJ9." + "Kd93jfLq02Mz7Xw5Tn1Vb6Rc4Ys0HgPe2U",
    "private key": "-----BEGIN RSA PRIVATE "
    + "KEY-----\n"
    + ("MIIEowIBAAKCAQEA7Kd93jfLq02Mz7Xw5Tn1Vb6Rc4Ys0HgPe2UoIiAaBbCc7+/\n" * 6)
    + "-----END",
}
PASSWORDS = {
    'password = "%s"': "hu9ter!Zebra",
    "DB_PASSWORD=%s": "k3Lq-93jfXw",
    '{"api_key": "%s"}': "9f8e7d6c5b4a39281706",
    "client_secret: '%s'": "Q7w-9Zk2Lm4p",
    "access_token => %s": "77af09bc61d2",
    "postgres://admin:%s@db.acme.net/main": "Gr3en-L4mp",
}


def conversation(answer: str, question: str = "Tell me of the lamp.", line: int = 1, **changes: Any) -> CheckedRow:
    values = {"source": "rows.jsonl", "line": line, "texts": [question, answer], "answers": [answer]}
    return CheckedRow(**{**values, "input_ids": [5] * 20, "supervised": 10, **changes})


def document(text: str, line: int = 1) -> CheckedRow:
    return CheckedRow("text.txt", line, [text], [], [5] * 20, 19)


def findings_of(rows: list[CheckedRow], byte_ids: frozenset[int] = frozenset(), batch: int = 500) -> list[Finding]:
    checks = Checks(byte_ids)
    for start in range(0, len(rows), batch):
        checks.look_at(rows[start : start + batch])
    return checks.findings()


def found(row: CheckedRow, check: str) -> Finding | None:
    return next((finding for finding in findings_of([row]) if finding.check == check), None)


FOUND = {
    "emails": [
        ("Write to hale.e@lighthouse-museum.org, she knows.", "hale.e@lighthouse-museum.org"),
        ("mailto:J.Doe+news@mail.acme.co.uk", "J.Doe+news@mail.acme.co.uk"),
        ("@property\ndef f(): pass # by ann@acme.io", "ann@acme.io"),
        ("邮箱ann@acme.com请联系", "ann@acme.com"),
    ],
    "mojibake": [
        ("Das ist schÃ¶n.", "schÃ¶n"),
        ("It isn\u00e2\u20ac\u2122t so.", "isn\u00e2\u20ac\u2122t"),
        ("A price of 5Â\u00a0€ it is", "5Â"),
        ("a happy face \u00f0\u0178\u02dc\u20ac there", "\u00f0\u0178\u02dc\u20ac"),
        ("caf\ufffd", "caf\ufffd"),
    ],
    "control_characters": [
        ("bell \x07 rings", "bell <U+0007> rings"),
        ("nothing\x00here", "<U+0000>"),
        ("form\x0cfeed", "<U+000C>"),
        ("next\x85line", "<U+0085>"),
        ("zero\u200bwidth", "zero<U+200B>width"),
        ("soft\xadhyphen", "<U+00AD>"),
        ("turned \u202e round", "<U+202E>"),
        ("\ufeffmark", "<U+FEFF>"),
        ("hidden \U000e0041\U000e0042", "<U+E0041>"),
    ],
    "rendered_text": [
        ("Say: <|im_start|>user\nhi<|im_end|>", "<|im_start|>user"),
        ("It is 4.<|im_end|>", "<|im_end|>"),
        ("Well.<|endoftext|>And", "<|endoftext|>"),
        ("[INST] What? [/INST]", "[INST] What?"),
        ("<<SYS>>be kind<</SYS>>", "<<SYS>>be kind"),
        ("<|start_header_id|>user<|end_header_id|>", "<|start_header_id|>user"),
        ("<start_of_turn>user", "<start_of_turn>user"),
        ("<|user|>\nWho?<|end|>", "<|user|>"),
        ("<|start|>user<|message|>Who?", "<|start|>user"),
        ("<\uff5cUser\uff5c>Who?", "<\uff5cUser\uff5c>"),
        ("So it is. ### Human: And then?", "### Human: And then?"),
        ("Do it. ### Instruction:\nSing.\n### Response:\nLa.", "### Instruction:"),
        ("a b USER: who? ASSISTANT: me", "USER: who?"),
        ("Human: who?\n\nAssistant: me. And so on", "Human: who?"),
        ("This is all.</s>", "</s>"),
        ("<s> This is all.</s>\n", "</s>"),
    ],
    "placeholders": [
        ("Dear {{name}}, the lamp is lit.", "{{name}}"),
        ("Dear {{ first_name }}!", "{{ first_name }}"),
        ("{{#items}}a{{/items}}", "{{#items}}"),
        ("It is {{ city | title }}.", "{{ city | title }}"),
        ("{{user.city}} and {{Customer Name}}", "{{user.city}}"),
        ("你好{{名字}}{{order_id}}", "{{名字}}"),
    ],
    "refusals": [
        ("As an AI language model, I do not eat.", "As an AI language model"),
        ("I\u2019m sorry, but I can\u2019t assist with that.", "sorry, but I"),
        ("I'm sorry, but as an AI I have no lamp.", "as an AI"),
        ("Sorry, I cannot help you with this request.", "cannot help"),
        ("I cannot fulfill this request.", "I cannot fulfill"),
        ("I am unable to browse the internet, but here goes.", "unable to browse"),
        ("Well, I'm just an AI, so no.", "just an AI"),
    ],
    "empty_answers": [
        (answer, answer.strip())
        for answer in ("ok", "OK.", "n/a", "N/A", "None", "...", "-", "?!", "I don\u2019t know.", "<nooutput>", "。")
    ],
    "short_answers": [
        (answer, answer) for answer in ("Yes.", "42", "-3.5", "positive", "B)", "+", "是", "积极", "はい。", "ใช่")
    ],
    "repetitions": [
        ("I like it very much.\n" * 12, "I like it very much."),
        ("Here is what I think. " + "It is good to be good. " * 9, "It is good to be good."),
        ("".join(f"{number}. Buy bread at the market today\n" for number in range(1, 8)), "Buy bread at the market"),
        ("and so on and on " * 20, "and so on"),
        ("今天天气很好。" * 12, "今天天气很好。"),
    ],
    "secrets": [(f"use {secret} please", secret[:4]) for name, secret in SECRETS.items() if name != "private key"]
    + [(SECRETS["private key"], "PRIVATE KEY-----")],
    "passwords": [(text % value, "••••") for text, value in PASSWORDS.items()],
}

NOT_FOUND = {
    "emails": [
        "ann@example.com, bob@mail.example.org, c@host.test, d@x.invalid, root@localhost, e@nothing",
        "your.name@gmail.com and user@acme.com and me@yourcompany.com",
        "git@github.com:acme/lamp.git and logo@2x.png",
        "@property and x@w.shape and a @ b and @someone and foo@self.weight",
    ],
    "mojibake": ["NÃO é irmã, São Paulo, MÃE; «IRMÃ»", "Âme, château, Ça", "\u201cquotes\u201d \u2013 5 € \u2019", "Ãrea"],
    "control_characters": [
        "tab\tand\r\nline",
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 a family",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 in Persian",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f a flag",
        "\u200f\u05e9\u05dc\u05d5\u05dd in Hebrew",
    ],
    "rendered_text": [
        "<html><|> and a | b, <user> and <end>, f <| x |> g, [INSTANCE]",
        "He is <s>old</s>",
        "### Instruction: sing.",
        "### Notes\n\n### Response codes: 404",
        "Every Human: a list. The Assistant: a play in one act. USER: root",
        "Assistant: Ann Lee\nHuman: Bob",
    ],
    "placeholders": [
        "Use `{{name}}` there, or:\n```\n{{ user }}\n``` so",
        "\\frac{{ab}}{{cd}} and x^{{nm}} and ${{ secrets.X1 }} and {{{raw}}} and {{x}} and {name}",
        "f'{{{name}}}' and { {name} } and {{}} and {{ 1 + 2 }} and {{'a': 1}}",
    ],
    "refusals": [
        "I can help with that, and I cannot wait to start.",
        "As an AI engineer, I build lamps. I'm sorry to hear of yours.",
        "He said he was unable to help.",
        "x" * 300 + " As an AI language model, I do not eat.",
    ],
    "empty_answers": ["Yes.", "42", "okra", "+", "No idea is bad if it is tried.", ""],
    "short_answers": [
        "Two words",
        "",
        "A full sentence is here to be read.",
        "今天天气很好。",
        "今日は天気がいいです",
        "วันนี้อากาศดีมาก",
        "ថ្ងៃនេះអាកាសធាតុល្អណាស់",
    ],
    "repetitions": [
        PROSE * 2,
        "| a | b | c |\n|---|---|---|\n" + "|   |   |   |\n" * 20,
        "-" * 200,
        "ha ha ha ha",
        "\n".join(f"{number}. item {number * 37}" for number in range(30)),
        "def f(x):\n    return x\n" + "\n".join(f"    value_{number} = {number}" for number in range(30)),
    ],
    "secrets": [
        "AKIAIOSFODNN7EXAMPLE and hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx and sk-your-key-goes-here-1234567890",
        "task-force-on-lighthouses-and-lamps-2024 and sk-learn-linear-model-estimators",
        "an_unusually_long_name_of_a_function_in_python and aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "-----BEGIN PRIVATE KEY-----\n(your key)\n-----END PRIVATE KEY-----",
        "ghp_short eyJhbGciOiJIUzI1NiJ9",
    ],
    "passwords": [
        "password = YOUR_PASSWORD_1 and api_key='<token-123>' and secret: xxxx-1234",
        "password = hashlib.sha256(x9) and secret_key = os.environ['KEY_1'] and password = request.form[0]",
        "Password: must be at least 8 characters. The secret: patience and practice.",
        "postgres://user:password1@db/main and https://acme.com:8080/a@b",
        "api_key=${API_KEY_1} and passwords: 12345678",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("check", "text", "shown"), [(check, *case) for check, cases in FOUND.items() for case in cases])
def test_finds(check: str, text: str, shown: str) -> None:
    finding = found(conversation(text, line=7), check)
    assert finding is not None
    assert (finding.count, finding.level, finding.meaning) == (1, *MEANINGS[check])
    assert [(example["source"], example["line"]) for example in finding.examples] == [("rows.jsonl", 7)]
    assert shown in finding.examples[0]["excerpt"]
    assert all(character.isprintable() for character in finding.examples[0]["excerpt"])


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, texts in NOT_FOUND.items() for text in texts])
def test_leaves_alone(check: str, text: str) -> None:
    assert found(conversation(text), check) is None


@pytest.mark.parametrize("check", ["emails", "mojibake", "control_characters", "secrets", "passwords", "rendered_text"])
def test_questions_and_documents_are_looked_at(check: str) -> None:
    text = FOUND[check][0][0]
    assert found(conversation(PROSE, question=text), check) is not None
    assert found(document(text), check) is not None


@pytest.mark.parametrize("check", ["refusals", "empty_answers", "short_answers", "repetitions"])
def test_only_answers_are_judged(check: str) -> None:
    text = FOUND[check][0][0]
    assert found(conversation(PROSE, question=text), check) is None
    assert found(document(text), check) is None


def test_one_word_in_a_longer_conversation_is_fine() -> None:
    row = conversation("", texts=["Hi", "Hello!", "Sing.", PROSE], answers=["Hello!", PROSE])
    assert findings_of([row]) == []


def test_copied_answers() -> None:
    assert found(conversation("The same.", question="The same."), "copied_answers") is not None
    assert (
        found(conversation("Aye aye.", texts=["a", "Aye aye.", "b", "Aye aye."], answers=["Aye aye."] * 2), "copied_answers")
        is None
    )
    assert found(document(PROSE), "copied_answers") is None


def test_placeholders_are_those_of_messages() -> None:
    assert found(conversation(PROSE, question="Dear {{name}},"), "placeholders") is not None
    assert found(document("Dear {{name}},"), "placeholders") is None


@pytest.mark.parametrize(
    "text", ['{"messages": []}', ' {"text": "a"}\n{"text": "b"}\n', '{"a": 1}\nand more', '{\n "a":\n 1}\n']
)
def test_json_documents(text: str) -> None:
    finding = found(document(text), "json_documents")
    assert finding is not None
    assert (finding.level, finding.count) == ("note", 1)
    assert found(conversation(text), "json_documents") is None


@pytest.mark.parametrize("text", ['{"a": 1} is JSON', "{a}", '["a"]', "{}", '{"a"', '{"a": ' * 100_000])
def test_other_documents_are_not_json(text: str) -> None:
    assert found(document(text), "json_documents") is None


def test_mostly_masked() -> None:
    assert found(conversation(PROSE, input_ids=[1] * 1000, supervised=49), "mostly_masked") is not None
    assert found(conversation(PROSE, input_ids=[1] * 1000, supervised=50), "mostly_masked") is None


def test_byte_tokens() -> None:
    def found_in(text: str, ids: Any) -> list[tuple[int, int]]:
        rows = [conversation(PROSE), conversation(text, line=2, input_ids=ids), conversation(text, line=3, input_ids=[9] * 20)]
        return [
            (finding.examples[0]["line"], finding.count)
            for finding in findings_of(rows, frozenset({3, 4}))
            if finding.check == "byte_tokens"
        ]

    assert found_in("今天天气很好", [3] * 2 + [4] * 2 + [9] * 16) == [(2, 1)]
    assert found_in("今天天气很好", numpy.array([3] * 4 + [9] * 16, numpy.int32)) == [(2, 1)]
    assert found_in("今天天气很好", [3] * 3 + [9] * 17) == []
    # Ids beyond the table, and ASCII text, which has no such bytes.
    assert found_in("今天天气很好", [5, 100_000] * 10) == []
    assert found_in("plain ascii text", [3] * 20) == []


def test_byte_token_ids_of_a_byte_level_tokenizer(tiny_tokenizer: Any) -> None:
    ids = byte_token_ids(tiny_tokenizer)
    assert len(ids) >= 128
    assert set(tiny_tokenizer("数", add_special_tokens=False)["input_ids"]) <= ids
    assert ids.isdisjoint(tiny_tokenizer(PROSE + "\n\t~", add_special_tokens=False)["input_ids"])
    assert ids.isdisjoint(tiny_tokenizer.all_special_ids)


def test_byte_token_ids_of_sentencepiece_and_of_others() -> None:
    class Vocabulary:
        def __init__(self, tokens: list[str]) -> None:
            self.tokens = tokens

        def get_vocab(self) -> dict[str, int]:
            return {token: number for number, token in enumerate(self.tokens)}

        def get_added_vocab(self) -> dict[str, int]:
            return {}

    pieces = ["<s>", "é", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a"]
    assert byte_token_ids(Vocabulary(pieces)) == frozenset(range(2 + 0x80, 2 + 0x100))  # type: ignore[arg-type]
    assert byte_token_ids(Vocabulary(["a", "é", "Ã", "数"])) == frozenset()  # type: ignore[arg-type]


GERMAN = "Die Lampe auf dem Hügel dreht sich die ganze Nacht, und der Wärter zählt die Schiffe, die ihm antworten."
FRENCH = "La lampe sur la colline tourne toute la nuit, et le gardien compte les navires qui lui répondent."
SPANISH = "La lámpara de la colina gira toda la noche, y el guardián cuenta los barcos que le responden."


def test_languages() -> None:
    question = "Please tell me the whole long story about the lamp that stands on the hill."
    answers = [GERMAN, FRENCH] + [PROSE] * 18
    rows = [conversation(answer, question, line) for line, answer in enumerate(answers, 1)]
    switch, mix = findings_of(rows)
    assert (mix.check, mix.level, mix.count) == ("languages", "note", 2)
    assert "of 20 sampled: en 90%, de 5%, fr 5%" in mix.meaning
    assert [example["line"] for example in mix.examples] == [1, 2]
    assert (switch.check, switch.count) == ("language_switch", 2)
    assert findings_of([conversation(PROSE, question, line) for line in range(1, 400)]) == []


def test_vowel_signs_are_part_of_words() -> None:
    """Marathi counted as Hindi, because its vowel signs were left out."""
    marathi = "आज हवामान खूप छान आहे आणि आम्ही बाजारात जाऊन भाज्या खरेदी करू. तुम्ही माझ्यासोबत याल का?"
    assert language(marathi) == "mr"
    assert language("الطَّقْسُ جَمِيلٌ جِدًّا الْيَوْمَ وَسَنَذْهَبُ إِلَى السُّوقِ") == "ar"


def test_the_sample_of_languages_is_spread_and_bounded() -> None:
    rows = [conversation(PROSE if line % 2 else SPANISH, PROSE, line) for line in range(1, 3001)]
    mix = next(finding for finding in findings_of(rows) if finding.check == "languages")
    assert 120 <= mix.count <= 150
    assert "of 300 sampled" in mix.meaning


def test_few_of_many_rows_are_a_note_but_not_secrets() -> None:
    rows = [conversation(PROSE, line=line) for line in range(1, 2002)]
    rows[500] = conversation(f"ok {SECRETS['aws']}", line=501)
    rows[600] = conversation("Write to ann@acme.io", line=601)
    rows[700] = conversation("n/a", line=701)
    levels = [(finding.check, finding.level, finding.examples[0]["line"]) for finding in findings_of(rows)]
    assert levels == [("secrets", "error", 501), ("emails", "warning", 601), ("empty_answers", "note", 701)]


def test_errors_come_first_then_the_most_frequent() -> None:
    rows = [conversation("ok"), conversation("n/a"), conversation("caf\ufffd it is"), conversation("key " + SECRETS["github"])]
    order = [(finding.check, finding.count) for finding in findings_of([*rows, conversation("42"), conversation("43")])]
    assert order == [("secrets", 1), ("empty_answers", 2), ("mojibake", 1), ("short_answers", 2)]


@pytest.mark.parametrize("secret", [*SECRETS.values(), *PASSWORDS.values()])
def test_no_secret_is_shown(secret: str) -> None:
    template = next((text for text, value in PASSWORDS.items() if value == secret), "use %s now")
    leak = template % secret
    texts = [
        leak,
        f"ann@acme.io {leak}",
        f"caf\ufffd {leak} \x07",
        f"{leak} ann@acme.io",
        f"I'm sorry, but I can't. {leak}",
        f"schÃ¶n {leak} " * 5,
    ]
    rows = [conversation(text, question=leak, line=line) for line, text in enumerate(texts, 1)]
    rows.append(conversation(leak, question=leak, input_ids=[1] * 1000, line=99))
    rows += [conversation(GERMAN, question=f"{leak} {FRENCH}", line=line) for line in range(100, 110)]
    findings = findings_of(rows)
    assert len(findings) >= 6
    shown = json.dumps([vars(finding) for finding in findings], ensure_ascii=False)
    body = secret.splitlines()[1] if "\n" in secret else secret
    assert body not in shown
    assert body[len(body) // 2 :] not in shown
    assert body[: len(body) // 2] not in shown


def test_masking_keeps_places() -> None:
    text = f"a {SECRETS['aws']} b"
    assert masked(text) == "a AKIA" + "•" * 16 + " b"
    assert masked(PROSE) == PROSE


def every_kind() -> list[CheckedRow]:
    texts = [text for cases in FOUND.values() for text, _ in cases] + [text for texts in NOT_FOUND.values() for text in texts]
    texts += [GERMAN, FRENCH, PROSE] * 10
    random.Random(1).shuffle(texts)
    rows = [
        conversation(text, PROSE, line, input_ids=[line % 7] * (20 if line % 9 else 500))
        for line, text in enumerate(texts * 4, 1)
    ]
    return [*rows, document('{"a": 1}')]


@pytest.mark.parametrize("batch", [1, 7, 100])
def test_batches_do_not_matter(batch: int) -> None:
    rows = every_kind()
    whole = findings_of(rows, frozenset({3}), batch=len(rows))
    assert len(whole) == len(MEANINGS) + 2
    assert findings_of(rows, frozenset({3}), batch=batch) == whole


def test_nothing_to_look_at() -> None:
    assert findings_of([]) == []
    assert Checks(frozenset()).findings() == []
    assert findings_of([conversation("", texts=[], answers=[], input_ids=[], supervised=0)]) == []


def test_the_import_is_light() -> None:
    script = "import sys, llmft_cli.data.checks; print({'numpy', 'py3langid', 'rensa', 'torch'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "set()\n"


ODD = st.text(alphabet=st.characters() | st.sampled_from("@.:/=-_ \n\x00\u0130\ud800ÃÂâ€\u200b"), max_size=120)
PARTS_OF_FINDINGS = st.sampled_from([text for cases in FOUND.values() for text, _ in cases])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(ODD | PARTS_OF_FINDINGS, min_size=1, max_size=4), max_size=6), st.integers(0, 5))
def test_any_text_can_be_looked_at(rows: list[list[str]], supervised: int) -> None:
    checked = [CheckedRow("s", line, texts, texts[1::2], [1, 2, 3] * line, supervised) for line, texts in enumerate(rows, 1)]
    for finding in findings_of(checked, frozenset({2})):
        for example in finding.examples:
            excerpt = example["excerpt"]
            assert excerpt.isprintable()
            assert len(excerpt) <= 1000
