"""From the configuration of speculation to what makes drafts on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from ...config import EngineConfig, ModelConfig
from ...engine.kv_cache.spec import CacheGroup, PagedKV
from ...models.decoder import Decoder
from ...models.drafts.head import DraftHead
from ...models.drafts.load import METHODS, load_head, read_head
from ...models.drafts.medusa import Medusa
from ...models.hub import resolve_head
from ...models.load import load_model
from ...models.parallel import Parallel
from ...models.protocol import Model
from ...models.read import ModelInfo, read_model
from ...plan import KernelPlan
from ..request_rows import RequestRows
from .cache import DraftCache
from .chain import Chain
from .draft_model import DraftModel
from .head import ChainedHead, MedusaHeads
from .proposer import DeviceProposer, DrawDrafts, Guesser


@dataclass(frozen=True)
class Drafter:
    """Loaded weights, before there is a cache.

    specs          what it keeps of a token, layer by layer
    max_model_len  longest sequence that it can follow
    reads_ahead    what it keeps of a token depends on the token after it, too
    """

    model: Model | DraftHead
    target: Model
    specs: Sequence[PagedKV]
    max_model_len: int
    reads_ahead: bool

    def token_bytes(self) -> int:
        """Of what it keeps of one token."""
        return sum(sum(spec.part_bytes()) for spec in self.specs)

    def proposer(
        self, groups: Sequence[CacheGroup], num_blocks: int, block_size: int, rows: RequestRows, plan: KernelPlan, draw: DrawDrafts
    ) -> DeviceProposer:
        """Beside the cache of the model, of so many blocks."""
        model, vocab_size = self.model, self.target.vocab_size
        if isinstance(model, Medusa):
            return MedusaHeads(model, vocab_size, rows.tokens, draw)
        guesser: Guesser
        if isinstance(model, DraftHead):
            assert isinstance(self.target, Decoder)
            guesser = ChainedHead(model, self.target, rows.device)
        else:
            guesser = DraftModel(model)
        return Chain(guesser, DraftCache(self.specs, groups, num_blocks, block_size, rows, plan, guesser.ahead), draw)


def load_drafter(
    config: EngineConfig,
    info: ModelInfo,
    target: Model,
    plan: KernelPlan,
    device: torch.device,
    load: Callable[..., Model] = load_model,
) -> Drafter:
    """The drafter of ``config.speculative_config``, whose method is one of the device's. ``target`` is told what it wants of
    its states. ``load``: what loads a draft model, as ``load_model`` does. Raises ValueError for one that does not fit;
    ``check_drafter`` finds most of it before any weight is read."""
    spec, block_size = config.speculative_config, config.cache.block_size
    assert spec.method is not None
    model: Model | DraftHead
    if spec.method in METHODS:
        head = read_head(spec.method, resolve_head(spec.model or config.model.name), info)
        model = load_head(spec.method, head, target, plan, device, block_size, config.cache.dtype)
        assert isinstance(target, Decoder)
        target.aux_layers = head.aux_layers
    else:
        asked = draft_config(config)
        model = load(asked, read_model(asked), plan, device, Parallel(), block_size, config.seed)
    specs = [spec for spec in model.cache_specs() if spec is not None]
    if specs:
        model.set_groups((CacheGroup(specs[0], tuple(range(len(specs)))),))
    return Drafter(model, target, specs, model.max_model_len, spec.method in METHODS and bool(specs))


def check_drafter(config: EngineConfig, info: ModelInfo) -> None:
    """Raises ValueError for a drafter that does not fit the model, before any weight is read."""
    spec = config.speculative_config
    assert spec.method is not None
    if spec.method in METHODS:
        head = read_head(spec.method, resolve_head(spec.model or config.model.name), info)
        if head.most is not None and spec.num_speculative_tokens > head.most:
            raise ValueError(
                f"speculative_config.num_speculative_tokens={spec.num_speculative_tokens} cannot work: {spec.model!r} has "
                f"{head.most} heads, a draft each; ask for so many at most"
            )
        return
    draft = read_model(draft_config(config))
    if draft.architecture is not None and draft.architecture.has_states:
        raise ValueError(
            f"speculative_config.model={spec.model!r} cannot guess: its layers keep states, from which no wrong draft can be taken "
            "back; expected a draft model that attends"
        )
    found = draft.config.get("vocab_size")
    if found != info.config.get("vocab_size"):
        raise ValueError(
            f"speculative_config.model={spec.model!r} cannot guess: its vocabulary has {found} tokens, the model's "
            f"{info.config.get('vocab_size')}; expected a draft model with the same tokens"
        )


def draft_config(config: EngineConfig) -> ModelConfig:
    """Of the draft model."""
    spec = config.speculative_config
    return replace(config.model, name=spec.model or "draft", revision=None, max_model_len=None, architecture=spec.architecture)
