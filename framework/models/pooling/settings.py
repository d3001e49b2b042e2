"""How a model pools, and with which heads. No tensors here: a simulator needs to know, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from ...engine.pooling import Instruction, PoolingRules
from ...pooling_params import PoolingTask

PoolingType = Literal["CLS", "LAST", "MEAN", "ALL", "STEP"]
POOLING_TYPES: tuple[PoolingType, ...] = get_args(PoolingType)
ScoreActivation = Literal["sigmoid", "softmax", "identity"]


@dataclass(frozen=True)
class HeadLayer:
    """One step of a head: activation(linear(x)), then a norm.

    module      its name on disk; "" = a norm alone
    folder      below the model's, where a file of weights of its own lies; "" = the model's files
    rows, columns   outputs and inputs
    activation  a name in heads.ACTIVATIONS
    norm        name on disk of a layer norm; "" = none
    norm_eps, norm_bias   of that
    """

    module: str
    rows: int
    columns: int
    bias: bool
    activation: str = "identity"
    folder: str = ""
    norm: str = ""
    norm_eps: float = 1e-5
    norm_bias: bool = True


@dataclass(frozen=True)
class Towers:
    """Of a model that embeds texts and images, each by a tower of its own. size: of embeddings of both; vocab_size: of texts;
    image_size: pixels of an image's sides; padding: (tokens of every text, the token that fills those that are shorter); None:
    texts stay as they are."""

    size: int
    vocab_size: int
    image_size: int
    padding: tuple[int, int] | None


@dataclass(frozen=True)
class Pooling:
    """What is made of a prompt's hidden states.

    task        what the model is for
    kind        which tokens' states count: the first, the last, the mean of all, all one by one, or those that end a step
    causal      a token sees only what is before it
    use_activation   embeddings have length 1, and scores are probabilities, where a request says nothing else
    projection  what embeddings go through before that
    classifier  what scores come out of; empty: none. Its last layer has a row per class
    activation  what makes probabilities of scores
    labels      names of the classes
    answer_tokens   in place of a classifier: tokens whose rows of the logits' projection it is made of
    two_way     of two answer tokens: the score of the second against the first
    step_tag_id, returned_token_ids   of STEP, where a request says nothing else
    matryoshka  see PoolingRules
    prompts, default_prompt   see PoolingRules
    max_len     longest text that the model was made for, where its files say so
    lower_case  text is brought into lower case
    instructed  an instruction may stand before a text, which the mean leaves out, as ``Instruction`` finds it
    towers      of a model that has them, which pool by themselves; None: it has hidden states
    """

    task: PoolingTask
    kind: PoolingType
    causal: bool
    use_activation: bool = True
    projection: tuple[HeadLayer, ...] = ()
    classifier: tuple[HeadLayer, ...] = ()
    activation: ScoreActivation = "softmax"
    labels: Mapping[int, str] = field(default_factory=dict)
    answer_tokens: tuple[int, ...] = ()
    two_way: bool = False
    step_tag_id: int | None = None
    returned_token_ids: tuple[int, ...] | None = None
    matryoshka: tuple[int, ...] | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_len: int | None = None
    lower_case: bool = False
    instructed: bool = False
    towers: Towers | None = None

    @property
    def num_labels(self) -> int:
        """Classes; 0 without a classifier."""
        if self.answer_tokens:
            return 1 if self.two_way else len(self.answer_tokens)
        return self.classifier[-1].rows if self.classifier else 0

    def embedding_size(self, hidden_size: int) -> int:
        """Of a model of this hidden size."""
        if self.towers is not None:
            return self.towers.size
        return self.projection[-1].rows if self.projection else hidden_size

    @property
    def tasks(self) -> tuple[PoolingTask, ...]:
        """What can be asked for."""
        if self.towers is not None:
            return ("embed",)
        if self.task in ("embed", "token_embed"):
            return ("embed", "token_embed") if self.kind not in ("ALL", "STEP") else ("token_embed",)
        return ("classify", "token_classify") if self.kind not in ("ALL", "STEP") else ("token_classify",)

    def rules(self, hidden_size: int, num_token_types: int, max_chunk: int, tokenizer: Any) -> PoolingRules:
        """What an engine may be asked for. max_chunk: tokens of a prompt that a step takes at most. Raises ValueError for a model
        that cannot do with this tokenizer, or without."""
        return PoolingRules(
            task=self.task,
            tasks=self.tasks,
            size=self.embedding_size(hidden_size),
            matryoshka=self.matryoshka,
            shares_prefix=self.causal and self.kind == "LAST",
            max_whole=None if self.causal else max_chunk,
            use_activation=self.use_activation,
            num_token_types=num_token_types,
            step_tag_id=self.step_tag_id,
            returned_token_ids=self.returned_token_ids,
            num_labels=self.num_labels,
            labels=self.labels,
            lower_case=self.lower_case,
            prompts=self.prompts,
            default_prompt=self.default_prompt,
            instruction=Instruction.of(tokenizer) if self.instructed else None,
            padding=self._padding(tokenizer),
            has_towers=self.towers is not None,
        )

    def _padding(self, tokenizer: Any) -> tuple[int, int] | None:
        """The tokenizer's padding goes before that of the config, which often is another family's. Raises ValueError for a token
        that the model has not."""
        if self.towers is None or self.towers.padding is None:
            return None
        length, token = self.towers.padding
        own = getattr(tokenizer, "pad_token_id", None)
        token = token if own is None else own
        if token is None or not 0 <= token < self.towers.vocab_size:
            raise ValueError(
                f"texts are filled up with pad_token_id={token}, but the model has ids 0 to {self.towers.vocab_size - 1}: its "
                "tokenizer, or its config.json, is another model's"
            )
        return length, token
