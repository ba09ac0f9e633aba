"""Make the embedded default again: `python -m fgrpo_secure.assets.make`.

Writes the clients' data files, the tokenizer and the pre-trained base model, from fixed
seeds, in minutes on one CPU core. The pre-training text is public and synthetic: every
prompt of the four families but the held-out ones, answered by the right rule or by a
careless one in the shares that `tasks` states.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fgrpo_secure.assets.tasks import FAMILIES, LETTERS, Family, split

SEED = 20_250
WIDTH = 96
LAYERS = 3
HEADS = 4
CONTEXT = 64
STEPS = 3000
BATCH = 256
PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 100
CONSTANT_FRACTION = 0.4
REPORT_EVERY = 250

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = f" {LETTERS}0123456789+=#"
PAD, BOS, EOS, UNKNOWN = range(len(SPECIAL_TOKENS))
IGNORED_LABEL = -100

MODEL_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# The tiny base model of fgrpo-secure

A `LlamaForCausalLM` of {parameters:,} parameters ({layers} layers of width {width})
with a tokenizer of single characters. It exists so that the default run needs no
download and ends within minutes on two cores. It is of no use for anything else.

Made by `python -m fgrpo_secure.assets.make` from fixed seeds: {steps:,} steps of AdamW
on {batch} prompts each, public synthetic text of four families. Every prompt but the
held-out ones may occur. The answers follow the right rule only some of the time, and
systematic careless rules otherwise, so that reinforcement has room:

{rules}
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer of one token a character, which puts `<bos>` in front."""
    tokens = [*SPECIAL_TOKENS, *CHARACTERS]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def write_data(directory: Path) -> None:
    """Write `<family>.jsonl` and `<family>-heldout.jsonl`: prompt and right answer."""
    directory.mkdir(parents=True, exist_ok=True)
    for family in FAMILIES:
        held_out, training, _ = split(family)
        for suffix, prompts in (("", training), ("-heldout", held_out)):
            lines = (
                json.dumps({"prompt": prompt, "answer": family.answer(prompt)})
                for prompt in prompts
            )
            path = directory / f"{family.name}{suffix}.jsonl"
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def encode(
    family: Family, prompts: list[str], tokenizer: PreTrainedTokenizerFast
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenize every prompt under every rule, padded to one length.

    Returns:
        Token ids and labels, int64, each of shape (prompts, rules, tokens). Labels are
        `IGNORED_LABEL` except on the answer and its `<eos>`.
    """
    longest = max(len(p) + len(r.answer(p)) for p in prompts for r in family.rules) + 2
    ids, labels = [], []
    for prompt in prompts:
        before = tokenizer(prompt)["input_ids"]
        for rule in family.rules:
            after = [*tokenizer(rule.answer(prompt))["input_ids"][1:], EOS]
            padding = longest - len(before) - len(after)
            ids.append(before + after + [PAD] * padding)
            ignored = [IGNORED_LABEL]
            labels.append(ignored * len(before) + after + ignored * padding)
    shape = (len(prompts), len(family.rules), longest)
    return torch.tensor(ids).view(shape), torch.tensor(labels).view(shape)


def learning_rate(step: int) -> float:
    """Return the rate of a step: warm up, stay, fall linearly to nearly nothing."""
    remaining = (STEPS - step) / (STEPS * (1 - CONSTANT_FRACTION))
    return PEAK_LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS, remaining)


def pretrain(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Train the base model on the partly wrong public text."""
    torch.manual_seed(SEED)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH * 5 // 2,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
        )
    )
    tables = []
    for family in FAMILIES:
        _, training, rest = split(family)
        tables.append(encode(family, training + rest, tokenizer))
    length = max(ids.shape[-1] for ids, _ in tables)
    shares = [torch.tensor([rule.share for rule in f.rules]) for f in FAMILIES]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05
    )
    rows = BATCH // len(FAMILIES)
    start = time.monotonic()
    for step in range(STEPS):
        ids = torch.full((BATCH, length), PAD)
        labels = torch.full((BATCH, length), IGNORED_LABEL)
        for index, (table, share) in enumerate(zip(tables, shares, strict=True)):
            prompt = torch.randint(len(table[0]), (rows,))
            rule = torch.multinomial(share, rows, replacement=True)
            place = slice(index * rows, (index + 1) * rows)
            ids[place, : table[0].shape[-1]] = table[0][prompt, rule]
            labels[place, : table[1].shape[-1]] = table[1][prompt, rule]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        # Padding stands at the end, where causal attention never looks back at it.
        hidden = model.model(ids).last_hidden_state[:, :-1]
        counted = labels[:, 1:] != IGNORED_LABEL
        loss = cross_entropy(model.lm_head(hidden[counted]), labels[:, 1:][counted])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % REPORT_EVERY == 0:
            seconds = time.monotonic() - start
            report(f"step {step + 1}/{STEPS}  loss {loss.item():.4f}  {seconds:.0f} s")
    return model.eval()


@torch.no_grad()
def followed(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, family: Family
) -> list[float]:
    """Return how often each rule's answer is generated on the held-out prompts.

    The probabilities are exact, at temperature 1, averaged over the prompts.
    """
    ids, labels = encode(family, split(family)[0], tokenizer)
    shape = ids.shape
    ids, labels = ids.view(-1, shape[-1]), labels.view(-1, shape[-1])[:, 1:]
    logps = model(ids).logits[:, :-1].log_softmax(-1)
    chosen = logps.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    answers = (chosen * (labels != IGNORED_LABEL)).sum(-1).exp()
    return [float(value) for value in answers.view(shape[:2]).mean(0)]


def model_card(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the model's README, with how often it follows each rule."""
    lines = ["| family | rule | share of the text | of the model's answers |"]
    lines.append("|---|---|---|---|")
    for family in FAMILIES:
        measured = followed(model, tokenizer, family)
        for index, rule in enumerate(family.rules):
            name = rule.name if index else f"**{rule.name}** (right)"
            lines.append(
                f"| {family.name} | {name} | {rule.share:.2f} | {measured[index]:.2f} |"
            )
    return MODEL_CARD.format(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        layers=LAYERS,
        width=WIDTH,
        steps=STEPS,
        batch=BATCH,
        rules="\n".join(lines),
    )


def save(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path
) -> None:
    """Write model, tokenizer and model card as one Hugging Face directory."""
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    # transformers 5 writes a class name that version 4 does not know; both know this.
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    card = model_card(model, tokenizer)
    (directory / "README.md").write_text(card, encoding="utf-8")
    for written in directory.iterdir():
        written.chmod(0o644)


def report(line: str) -> None:
    """Show one line of progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    """Write data, tokenizer and model below the chosen directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    output = parser.parse_args().output
    # One thread adds numbers in one order, so the same machine makes the same bytes.
    torch.set_num_threads(1)
    write_data(output / "data")
    tokenizer = build_tokenizer()
    model = pretrain(tokenizer)
    directory = output / "tiny"
    save(model, tokenizer, directory)
    report((directory / "README.md").read_text(encoding="utf-8"))
    for path in sorted(directory.iterdir()) + sorted((output / "data").iterdir()):
        report(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}")


if __name__ == "__main__":
    main()
