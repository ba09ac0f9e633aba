"""The other side of `round.py`: TRL's GRPOTrainer, without any privacy.

The same model, prompts, rewards, LoRA shape and lengths. It trains A and B of the
adapter, as is usual there. Its gradients are sums over a batch, so nothing bounds what
one prompt does.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.worker import Channel, forget_peak, held_memory, peak_memory

# Small enough that every step starts from the same policy, as far as lengths show.
_LEARNING_RATE = 1e-9


def serve(setup: Mapping[str, Any], channel: Channel) -> None:
    """Train as `round.py` asks, one optimizer step for each request."""
    import torch  # noqa: PLC0415
    from datasets import Dataset  # noqa: PLC0415
    from peft import LoraConfig  # noqa: PLC0415
    from transformers import (  # noqa: PLC0415
        AutoModelForCausalLM,
        AutoTokenizer,
        PrinterCallback,
        TrainerCallback,
    )
    from transformers.utils import logging  # noqa: PLC0415
    from trl import GRPOConfig, GRPOTrainer  # noqa: PLC0415

    from fgrpo_secure.config import load_config  # noqa: PLC0415
    from fgrpo_secure.task import load_reward_set, load_units  # noqa: PLC0415

    logging.disable_progress_bar()
    config, _ = load_config(setup["config"], setup["overrides"])
    torch.set_num_threads(config.machine.threads)
    client = config.client_named(setup["client"])
    units = list(load_units(config, client).values())
    rewards = load_reward_set(client)
    rows = [
        {"prompt": _plain(units[row].examples[0].prompt)}
        | dict(units[row].examples[0].columns)
        for step in setup["rows"]
        for row in step
    ]
    columns = sorted(rows[0].keys() - {"prompt"})
    tokens = 0

    def reward(
        prompts: list[Any],
        completions: list[Any],
        **given: Any,  # noqa: ANN401
    ) -> list[float | None]:
        nonlocal tokens
        tokens += sum(len(ids) for ids in given["completion_ids"])
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        kept = [p if isinstance(p, str) else tuple(p) for p in prompts]
        values = rewards.score(kept, texts, {name: given[name] for name in columns})
        return [None if value != value else float(value) for value in values]  # noqa: PLR0124

    class Paced(TrainerCallback):
        """Waits for a request before each optimizer step, and times it."""

        began = 0.0

        def on_step_begin(self, *_: object, **__: object) -> None:
            nonlocal tokens
            if channel.receive() is None:
                sys.exit(0)
            tokens = 0
            self.began = time.perf_counter()

        def on_step_end(self, *_: object, **__: object) -> None:
            seconds = time.perf_counter() - self.began
            channel.send({"seconds": seconds, "tokens": tokens, "peak": peak_memory()})

    grpo, model = config.grpo, config.model
    completions = len(setup["rows"][0]) * grpo.group_size
    with tempfile.TemporaryDirectory(prefix="fgrpo-trl-") as folder:
        trainer = GRPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(model.base, dtype=torch.float32),
            processing_class=AutoTokenizer.from_pretrained(model.base),
            reward_funcs=[reward],
            train_dataset=Dataset.from_list(rows),
            callbacks=[Paced()],
            peft_config=LoraConfig(
                r=model.lora_rank,
                lora_alpha=model.lora_alpha,
                target_modules=list(model.target_modules),
                layers_to_transform=list(model.layers) if model.layers else None,
                task_type="CAUSAL_LM",
            ),
            args=GRPOConfig(
                output_dir=folder,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                per_device_train_batch_size=setup["batch"],
                gradient_accumulation_steps=completions // setup["batch"],
                num_generations=grpo.group_size,
                max_completion_length=grpo.max_tokens,
                temperature=grpo.temperature,
                top_p=grpo.top_p,
                top_k=0,
                beta=grpo.kl_coefficient,
                epsilon=grpo.ratio_clip,
                loss_type=grpo.loss,
                scale_rewards=grpo.scale_rewards,
                num_iterations=1,
                learning_rate=_LEARNING_RATE,
                lr_scheduler_type="constant",
                max_steps=len(setup["rows"]),
                shuffle_dataset=False,
                dataloader_pin_memory=False,
                logging_strategy="no",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
        )
        trainer.remove_callback(PrinterCallback)
        forget_peak()
        channel.send({"held": held_memory()})
        trainer.train()


def _plain(prompt: str | tuple[Mapping[str, str], ...]) -> str | list[dict[str, str]]:
    return prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def main() -> None:
    """Serve `round.py`."""
    channel = Channel()
    setup = channel.receive()
    if setup is None:
        return
    if importlib.util.find_spec("trl") is None:
        channel.send({"missing": "trl"})
        return
    serve(setup, channel)


if __name__ == "__main__":
    main()
