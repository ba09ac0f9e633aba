"""The policy: a causal language model with its adapter and its tokenizer."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Cache,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from fgrpo_secure.errors import ConfigurationError, DataError, ModelError
from fgrpo_secure.grpo.adapter import LoraSettings, attach
from fgrpo_secure.grpo.logps import packed_logps, row_logps
from fgrpo_secure.grpo.packing import (
    Columns,
    Message,
    ModelInputs,
    Prompt,
    left_padded,
    packed_columns,
    packed_inputs,
    row_inputs,
)


@dataclass(frozen=True, slots=True)
class Policy:
    """A model that generates and learns.

    The model stays in evaluation mode, so dropout is off everywhere and always.

    Attributes:
        tokenizer: Text to tokens and back.
        model: The model with its adapter.
        network: The same model without peft's wrapper, which a forward pass calls.
        eos_ids: Tokens that end a completion.
        pad_id: The token in padded places, which no result depends on.
        takes_packed: The model honours a mask of four axes.
        forward_names: What the network's forward pass accepts.
    """

    tokenizer: PreTrainedTokenizerBase
    model: PeftModel
    network: PreTrainedModel
    eos_ids: tuple[int, ...]
    pad_id: int
    takes_packed: bool
    forward_names: frozenset[str]

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return self.network.device

    def mask_dtype(self, width: int) -> torch.dtype | None:
        """The dtype of a packed mask for rows of `width`, or None for the row layout.

        A packed mask says nothing of a sliding window, so a group that would not fit
        in the window goes by rows.

        Args:
            width: Tokens of a prompt and one completion.
        """
        window = getattr(self.network.config, "sliding_window", None)
        if not self.takes_packed or (window is not None and width > window):
            return None
        return self.network.dtype

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Tokens of one prompt.

        A plain prompt gets the tokenizer's own special tokens, a conversation its chat
        template with the assistant's turn opened.

        Raises:
            ModelError: A conversation meets a tokenizer without a chat template.
            DataError: The chat template refuses the conversation.
        """
        return self.encode_all([prompt])[0]

    def encode_all(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """Tokens of many prompts, to be called before anything is drawn.

        Raises:
            ModelError: A conversation meets a tokenizer without a chat template.
            DataError: The chat template refuses the conversation.
        """
        plain = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(self.tokenizer(plain)["input_ids"] if plain else [])
        rows = [
            next(encoded) if isinstance(prompt, str) else self._chat(prompt, number)
            for number, prompt in enumerate(prompts, 1)
        ]
        return [tuple(row) or (self.pad_id,) for row in rows]

    def check_tokens(self, rows: Sequence[Sequence[int]]) -> None:
        """Refuse tokens that the model has no embedding for, before anything is drawn.

        Such a token would fail in the middle of a round, and only if its prompt is in
        the draw.

        Raises:
            ModelError: The tokenizer makes more tokens than the model has.
        """
        size = self.network.get_input_embeddings().num_embeddings
        if max((token for row in rows for token in row), default=0) >= size:
            raise ModelError(
                f"The tokenizer makes tokens beyond the model's {size} embeddings.",
                "Use the model's own tokenizer, or resize its embeddings.",
            )

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """Completions as text, without special tokens.

        Args:
            ids: shape (N, T), int64.
            mask: shape (N, T), bool.

        Returns:
            N texts.
        """
        lengths = mask.sum(-1).tolist()
        rows = [
            tuple(row[:length])
            for row, length in zip(ids.tolist(), lengths, strict=True)
        ]
        # Short completions repeat a lot, and decoding is what costs.
        distinct = list(dict.fromkeys(rows))
        texts = self.tokenizer.batch_decode(distinct, skip_special_tokens=True)
        known = dict(zip(distinct, texts, strict=True))
        return [known[row] for row in rows]

    def forward(
        self,
        inputs: ModelInputs,
        keep: int,
        cache: Cache | None = None,
        *,
        use_cache: bool = False,
    ) -> tuple[Tensor, Cache | None]:
        """One forward pass.

        Args:
            inputs: Token ids, mask and positions.
            keep: Logits are wanted of the last `keep` positions only.
            cache: Keys and values of what came before.
            use_cache: Whether a cache is wanted.

        Returns:
            Logits, shape (B, keep, V), and the cache.
        """
        return _forward(
            self.network, self.forward_names, inputs, keep, cache, use_cache=use_cache
        )

    def check_width(self, max_prompt_tokens: int, max_tokens: int) -> None:
        """Refuse lengths that the model has no positions for.

        A longer text would fail, or change how positions are scaled for all of a batch,
        depending on the data. So the limit is checked once, on the plan's constants.

        Raises:
            ConfigurationError: Prompt and completion together are too long.
        """
        config = self.network.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        limits = [
            getattr(config, "max_position_embeddings", None),
            getattr(config, "original_max_position_embeddings", None)
            if rope.get("rope_type") == "longrope"
            else None,
            rope.get("original_max_position_embeddings")
            if rope.get("rope_type") in ("dynamic", "longrope")
            else None,
        ]
        limit = min((n for n in limits if n is not None), default=None)
        if limit is not None and max_prompt_tokens + max_tokens > limit:
            raise ConfigurationError(
                f"max_prompt_tokens {max_prompt_tokens} and max_tokens {max_tokens} "
                f"together pass the model's {limit} positions.",
                "Lower one of them.",
            )

    def _chat(self, messages: tuple[Message, ...], number: int) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise ModelError(
                "The data set holds conversations and the tokenizer has no chat "
                "template.",
                "Use an instruction-tuned model, or plain text in the prompt column.",
            )
        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
            )
        # A template is a program of the model's author and may raise anything; its
        # message may quote the conversation, so it is not passed on.
        except Exception:
            raise DataError(
                f"The model's chat template refuses conversation number {number}.",
                "Check the roles and their order against the model's card.",
            ) from None
        return list(ids)


def load_policy(
    base: str,
    lora: LoraSettings,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """Load a base model and put a fresh adapter on it.

    Args:
        base: A directory, or a name on the Hugging Face hub.
        lora: The adapter's shape.
        device: Where to compute, as torch names it.
        dtype: The base model's numbers; the adapter is float32.

    Raises:
        ModelError: The model cannot be found, read or adapted.
    """
    place = _usable(device)
    model, tokenizer = _load_base(base, dtype)
    return make_policy(model.to(place), tokenizer, lora)


def load_trained_policy(
    base: str,
    directory: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Policy:
    """Load a base model with an adapter that was saved, to generate with.

    Args:
        base: A directory, or a name on the Hugging Face hub.
        directory: A PEFT directory, of any LoRA configuration.
        device: Where to compute, as torch names it.
        dtype: The base model's numbers.

    Raises:
        ModelError: The model or the adapter cannot be found or read, or they do not
            fit each other.
    """
    if not (directory / "adapter_config.json").is_file():
        raise ModelError(
            f"{directory} is not a PEFT adapter directory.",
            "Give the folder that holds adapter_config.json, such as RUN/adapter.",
        )
    place = _usable(device)
    model, tokenizer = _load_base(base, dtype)
    try:
        adapted = PeftModel.from_pretrained(model.to(place), str(directory))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"The adapter {directory} does not fit the model ({type(error).__name__}).",
            "Use the base model that it was trained on.",
        ) from error
    return _policy(adapted.eval(), model, tokenizer)


def make_policy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lora: LoraSettings
) -> Policy:
    """Make a policy of a model and a tokenizer in memory.

    Raises:
        ModelError: The model cannot be adapted, or names no end token.
    """
    return _policy(attach(model, lora).to(model.device), model, tokenizer)


def _usable(device: str) -> torch.device:
    """A device on which something can be computed.

    Raises:
        ConfigurationError: torch does not know it, or it is not here.
    """
    try:
        return torch.zeros(1, device=device).device
    # Without a GPU torch asserts; without a driver it raises.
    except (AssertionError, RuntimeError):
        raise ConfigurationError(
            f'[machine] device = "{device}" is not here, or this torch cannot use it.',
            'Set device = "cpu", or install a torch built for the GPU and its driver.',
        ) from None


def _load_base(
    base: str, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base model and its tokenizer.

    Raises:
        ModelError: The model cannot be found or read.
    """
    if base.startswith((".", "/", "~")) and not Path(base).expanduser().is_dir():
        raise ModelError(
            f"There is no model directory {base}.",
            "Check [model] base; relative paths resolve from the configuration file.",
        )
    logging.disable_progress_bar()
    try:
        # Weights are read from safetensors only: the older format runs code.
        tokenizer = AutoTokenizer.from_pretrained(base)
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        where = (
            f"The model in the directory {base} cannot be loaded"
            if Path(base).is_dir()
            else f"The model {base} is no directory, and the hub did not give it"
        )
        raise ModelError(
            f"{where} ({type(error).__name__}).",
            "Give a directory with a causal model, its tokenizer and safetensors "
            "weights; without a network, download it first with `hf download`.",
        ) from error
    return model, tokenizer


def _policy(
    adapted: PeftModel, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Policy:
    """A policy of a model that has its adapter.

    Raises:
        ModelError: The model names no end token.
    """
    network = adapted.get_base_model()
    eos_ids = _eos_ids(model, tokenizer)
    if not eos_ids:
        raise ModelError(
            "Neither the model nor its tokenizer names an end token.",
            "Set eos_token in the tokenizer's configuration.",
        )
    pad_id = tokenizer.pad_token_id
    names = frozenset(inspect.signature(network.forward).parameters)
    return Policy(
        tokenizer=tokenizer,
        model=adapted,
        network=network,
        eos_ids=eos_ids,
        pad_id=eos_ids[0] if pad_id is None else pad_id,
        takes_packed=_takes_packed(network, names),
        forward_names=names,
    )


def _eos_ids(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    found: set[int] = set()
    generation = getattr(model, "generation_config", None)
    for value in (
        tokenizer.eos_token_id,
        model.config.eos_token_id,
        generation.eos_token_id if generation is not None else None,
    ):
        if isinstance(value, int):
            found.add(value)
        elif value is not None:
            found.update(value)
    return tuple(sorted(found))


def _forward(
    network: PreTrainedModel,
    names: frozenset[str],
    inputs: ModelInputs,
    keep: int,
    cache: Cache | None = None,
    *,
    use_cache: bool = False,
) -> tuple[Tensor, Cache | None]:
    optional: dict[str, object] = {}
    if "position_ids" in names:
        optional["position_ids"] = inputs.positions
    if "logits_to_keep" in names:
        optional["logits_to_keep"] = keep
    if use_cache:
        # Without the model's configuration the cache keeps every token, also where a
        # layer looks at a window only: the packed cache is not in the order of time.
        # By rows the model makes the cache of its own kind.
        packed = inputs.mask.ndim == 4
        optional["past_key_values"] = (
            DynamicCache() if packed and cache is None else cache
        )
    output = network(
        input_ids=inputs.ids,
        attention_mask=inputs.mask,
        use_cache=use_cache,
        **optional,
    )
    return output.logits[:, -keep:], output.past_key_values if use_cache else None


@torch.no_grad()
def _takes_packed(network: PreTrainedModel, names: frozenset[str]) -> bool:
    """Whether packed rows give what single rows give, tried on a public dummy."""
    if "position_ids" not in names:
        return False
    top = min(network.config.get_text_config().vocab_size - 1, 50)
    prompt, mask = left_padded([[top // 2, top // 3, top]], 5, 1, 0)
    completions = (torch.arange(6).reshape(1, 2, 3) * 7 + 3) % (top + 1)
    prompt, mask, completions = (
        t.to(network.device) for t in (prompt, mask, completions)
    )
    shown = torch.ones_like(completions, dtype=torch.bool)
    columns = Columns.of(shown, packed_columns(shown[0]) + 1)
    width = columns.place.shape[1]
    inputs = packed_inputs(prompt, mask, completions, columns, network.dtype)
    plain = row_inputs(prompt, mask, completions, shown)
    try:
        packed = _forward(network, names, inputs, width + 1)[0]
        rows = _forward(network, names, plain, 4)[0]
    # A model that cannot take such a mask says so in its own way.
    except (RuntimeError, ValueError, TypeError, IndexError):
        return False
    one = packed_logps(packed, completions, columns, 1.0)
    two = row_logps(rows, completions, 1.0)
    tolerance = 1e-3 if network.dtype == torch.float32 else 0.1
    return bool(torch.allclose(one, two, atol=tolerance, rtol=tolerance))
