"""What a pooling engine takes, by the model that it serves. Pure Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..pooling_params import TASKS, TOKEN_TASKS, PoolingParams, PoolingTask
from ..sampling_params import SamplingParams, is_integer
from .inputs import InputProcessor
from .prompts import EngineInput, Prompt


def generates(name: str) -> str:
    """What whoever asks a model to pool is told that was not built for it."""
    return f"{name!r} generates here: to embed, classify, score or encode with it, build it with runner='pooling' (model.runner)"


@dataclass(frozen=True)
class Instruction:
    """How GritLM's prompts begin, ``<|user|>\\n{instruction}\\n<|embed|>\\n`` or ``<|embed|>\\n`` alone, in tokens: its start, the
    end of one that began so, and the end alone. bos: the token before all that; None: there is none."""

    user: list[int]
    end: list[int]
    end_alone: list[int]
    bos: int | None

    @classmethod
    def of(cls, tokenizer: Any) -> Instruction:
        """Raises ValueError without a tokenizer."""
        if tokenizer is None:
            raise ValueError(
                "GritLM cannot embed without its tokenizer, which tells where the instruction of a prompt ends: leave out "
                "model.skip_tokenizer, or give one with model.tokenizer"
            )

        def ids(text: str) -> list[int]:
            found: list[int] = tokenizer.encode(text, add_special_tokens=False)
            return found

        # After other text a word's first token is another one than at the start.
        return cls(ids("<|user|>\n"), ids("x\n<|embed|>\n")[len(ids("x")) :], ids("<|embed|>\n"), tokenizer.bos_token_id)

    def length(self, prompt: Sequence[int]) -> int:
        """Tokens of a prompt to the end of its instruction; without one, those before the text."""
        start = int(bool(prompt) and prompt[0] == self.bos)

        def has(tokens: list[int], at: int) -> bool:
            return list(prompt[at : at + len(tokens)]) == tokens

        if not has(self.user, start):
            return start + len(self.end_alone) * has(self.end_alone, start)
        return next((at + len(self.end) for at in range(start, len(prompt)) if has(self.end, at)), start)


@dataclass(frozen=True)
class PoolingRules:
    """What may be asked of a pooling model.

    task         that it is for
    tasks        those that it can do
    size         of its embeddings
    matryoshka   sizes to which embeddings may be cut; empty: any up to ``size``; None: they may not be cut
    shares_prefix   ``task`` may find a prompt's prefix in the cache: nothing but its last token is looked at, which sees what is
                 before it only
    max_whole    longest prompt, where tokens see those after them, so that it is computed whole in one step; None: it need not
    use_activation   default of PoolingParams
    num_token_types   tokens of a pair's second text are of another type where there are two
    step_tag_id, returned_token_ids   defaults of PoolingParams
    num_labels   of a classifier; labels: names of its classes
    lower_case   text is brought into lower case
    prompts      name -> text to put before a prompt; default_prompt: the name that is taken where none is given
    instruction  what the mean of a prompt leaves out; None: nothing
    padding      (tokens, token): every text is brought to that many with that token; None: it stays as it is
    has_towers   images are embedded as texts are, and no two texts are compared
    """

    task: PoolingTask
    tasks: tuple[PoolingTask, ...]
    size: int
    matryoshka: tuple[int, ...] | None = None
    shares_prefix: bool = False
    max_whole: int | None = None
    use_activation: bool = True
    num_token_types: int = 0
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None
    num_labels: int = 0
    labels: Mapping[int, str] = field(default_factory=dict)
    lower_case: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    instruction: Instruction | None = None
    padding: tuple[int, int] | None = None
    has_towers: bool = False

    @property
    def generates_nothing(self) -> str:
        """What whoever asks it to generate is told."""
        return (
            f"this model pools and generates nothing: use embed, classify, score or encode ({self.task} is what it is for), or "
            "build the engine with runner='generate' (model.runner), where the checkpoint is of a model that can"
        )

    def complete(self, params: PoolingParams | SamplingParams | None) -> PoolingParams:
        """A private copy with nothing left open. Raises ValueError for what this model cannot do."""
        if not isinstance(params, PoolingParams):
            raise ValueError(self.generates_nothing)
        params.validate()
        task = params.task or self.task
        if task not in self.tasks:
            raise ValueError(
                f"PoolingParams: task={task!r} cannot work: this model does {', '.join(self.tasks)}; of {', '.join(TASKS)} the "
                "others need a head that it has not (convert= may make one)"
            )
        if params.dimensions is not None:
            self._check_dimensions(params.dimensions, task)
        asked = params.returned_token_ids
        if asked is not None and (task != "token_classify" or max(asked) >= self.num_labels):
            raise ValueError(
                f"PoolingParams: returned_token_ids={asked} cannot work: they are of the classes of each token, and this is "
                f"{task}, with {self.num_labels} classes"
            )
        ids = asked or self.returned_token_ids
        if params.step_tag_id is not None and self.step_tag_id is None:
            raise ValueError(
                f"PoolingParams: step_tag_id={params.step_tag_id} cannot work: this model judges no steps (pooling_type STEP)"
            )
        own = replace(
            params,
            task=task,
            use_activation=self.use_activation if params.use_activation is None else params.use_activation,
            step_tag_id=self.step_tag_id if params.step_tag_id is None else params.step_tag_id,
            returned_token_ids=None if ids is None else list(ids),
            skip_reading_prefix_cache=bool(params.skip_reading_prefix_cache) or not self.shares_prefix or task in TOKEN_TASKS,
        )
        own.second_text = params.second_text if self.num_token_types > 1 else None
        return own

    def admit(self, prompt: EngineInput, params: PoolingParams, max_model_len: int) -> EngineInput:
        """What the model is given of a prompt; ``params``, complete and private, learn what of it is theirs. Raises ValueError for
        one that it cannot take."""
        ids = prompt.token_ids
        self.check_prompt(len(ids), max_model_len)
        params.num_unpooled, params.pixels = self.num_unpooled(ids), prompt.pixels
        if self.padding is None or prompt.pixels is not None:
            return prompt
        length, token = self.padding
        return replace(prompt, token_ids=[*ids, *[token] * (length - len(ids))])

    def check_scores(self) -> None:
        """Raises ValueError for a model that gives no single score of two texts."""
        if self.has_towers:
            raise ValueError("this model compares texts with images, and no texts with each other: embed both, and take the cosine")
        if self.num_labels > 1:
            raise ValueError(f"this model tells {self.num_labels} classes apart, and a score is of one: use classify")

    def check_prompt(self, num_tokens: int, max_model_len: int) -> None:
        """Raises ValueError for a prompt that is too long."""
        if num_tokens > max_model_len:
            raise ValueError(
                f"the prompt has {num_tokens} tokens, but the model takes at most {max_model_len} (model.max_model_len): shorten "
                "it, or have it cut (truncate_prompt_tokens)"
            )
        if self.max_whole is not None and num_tokens > self.max_whole:
            raise ValueError(
                f"the prompt has {num_tokens} tokens, but this model sees all of a prompt at once, and a step takes "
                f"{self.max_whole} of one: raise scheduler.max_num_batched_tokens (and max_chunk_tokens), or shorten it"
            )

    def num_unpooled(self, prompt: Sequence[int]) -> int:
        """Tokens at a prompt's start that its mean leaves out. Raises ValueError for a prompt that has no others."""
        count = 0 if self.instruction is None else self.instruction.length(prompt)
        if count and count == len(prompt):
            raise ValueError(f"the prompt's {count} tokens are an instruction without a text behind it: there is nothing to embed")
        return count

    def prompt_prefix(self, name: str | None) -> str:
        """The text to put before a prompt. Raises ValueError for a name that the model has no text for."""
        name = self.default_prompt if name is None else name
        if name is None:
            return ""
        if not isinstance(name, str) or name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise ValueError(f"prompt_name={name!r} cannot work: the model's prompts are {known}")
        return self.prompts[name]

    def _check_dimensions(self, dimensions: int, task: PoolingTask) -> None:
        if task not in ("embed", "token_embed"):
            raise ValueError(f"PoolingParams: dimensions={dimensions} cannot work: only embeddings can be cut, and this is {task}")
        if self.matryoshka is None:
            raise ValueError(
                f"PoolingParams: dimensions={dimensions} cannot work: this model's embeddings were not made to be cut; "
                "leave it out (its config.json would say is_matryoshka or matryoshka_dimensions)"
            )
        if self.matryoshka and dimensions not in self.matryoshka:
            raise ValueError(
                f"PoolingParams: dimensions={dimensions} cannot work: it must be one of {', '.join(map(str, self.matryoshka))}"
            )
        if dimensions > self.size:
            raise ValueError(f"PoolingParams: dimensions={dimensions} cannot work: the model's embeddings have {self.size}")


class PoolingInputs:
    """From texts to what a pooling engine takes.

    truncate, everywhere: most tokens that are left of a text, special ones included, its first; -1 = as many as the model takes,
    None = all, however many that are. Raises ValueError, also where the special ones alone are more."""

    def __init__(self, inputs: InputProcessor, rules: PoolingRules, max_model_len: int) -> None:
        self._inputs, self.rules, self._max_model_len = inputs, rules, max_model_len

    def prompt(
        self, prompt: EngineInput | Prompt, truncate: int | None = None, prompt_name: str | None = None, special_tokens: bool = True
    ) -> EngineInput:
        """Text (behind that of ``prompt_name``, see ``PoolingRules.prompts``), token ids, or a dict of either."""
        if isinstance(prompt, EngineInput):
            return prompt
        most, texts = self._most(truncate), list[str]()

        def encode(text: str) -> list[int]:
            texts.append(self.rules.prompt_prefix(prompt_name) + text)
            return self._encode(texts[0], None, most, special_tokens)[0]

        found = self._inputs.prompt(prompt, encode)
        if prompt_name is not None and not texts:
            raise ValueError(f"prompt_name={prompt_name!r} cannot work: it is for texts, and this prompt is tokens or an image")
        return replace(found, token_ids=found.token_ids[:most])

    def pair(
        self, first: str, second: str, params: PoolingParams, truncate: int | None = None
    ) -> tuple[EngineInput, PoolingParams]:
        """Two texts as one prompt, as a cross-encoder takes them, and its parameters."""
        ids, types = self._encode(first, second, self._most(truncate), True)
        own = params.clone()
        own.second_text = types.index(1) if 1 in types else None
        return EngineInput(ids, first + second), own

    def _most(self, truncate: int | None) -> int | None:
        if truncate is None:
            return None
        if not is_integer(truncate) or truncate == 0 or truncate < -1:
            raise ValueError(
                f"truncate_prompt_tokens={truncate!r} cannot work: it must be a positive number, -1 (as many as fit) or None"
            )
        if truncate > self._max_model_len:
            raise ValueError(
                f"truncate_prompt_tokens={truncate} cannot work: the model takes {self._max_model_len} tokens (-1 = as many as fit)"
            )
        longest = min(self._max_model_len, self.rules.max_whole or self._max_model_len)
        return longest if truncate == -1 else int(truncate)

    def _encode(self, text: str, second: str | None, most: int | None, special_tokens: bool) -> tuple[list[int], Sequence[int]]:
        """Token ids, and their types where the tokenizer tells texts apart."""
        texts = [text] if second is None else [text, second]
        for each in texts:
            self._inputs.check_text(each)
        if self.rules.lower_case:
            texts = [each.lower() for each in texts]
        cut: dict[str, Any] = {} if most is None else {"truncation": True, "max_length": most}
        found = self._inputs.tokenizer(*texts, add_special_tokens=special_tokens, **cut)
        ids: list[int] = found["input_ids"]
        if most is not None and len(ids) > most:  # which the tokenizer leaves as it is
            raise ValueError(f"truncate_prompt_tokens={most} cannot work: it leaves no room beside the special tokens")
        return ids, found.get("token_type_ids") or ()
