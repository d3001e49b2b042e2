"""The training loop: Muon and AdamW under a warmup-stable-decay schedule."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm
from transformers import LlamaForCausalLM

from experiments.tiny.data import Stream
from experiments.tiny.muon import Muon

log = logging.getLogger(__name__)

VOCABULARY = ("embed_tokens.weight", "lm_head.weight")
"""Ends of the names of matrices with a row per token."""


def next_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats per token."""
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Cross-entropy against the teacher's distribution (its KL up to a constant)."""
    soft = teacher_logits.float().softmax(-1).flatten(0, 1)
    return F.cross_entropy(logits.float().flatten(0, 1), soft)


def language_model_loss(model: LlamaForCausalLM, teacher: LlamaForCausalLM | None) -> Callable[[Tensor], Tensor]:
    """The loss of a batch of windows: against their tokens, or against the teacher's distributions."""

    def loss(tokens: Tensor) -> Tensor:
        inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        logits = model(inputs).logits
        if teacher is None:
            return next_token_loss(logits, targets)
        with torch.no_grad():
            teacher_logits = teacher(inputs).logits
        return distillation_loss(logits, teacher_logits)

    return loss


def learning_rate_factor(step: int, run: DictConfig) -> float:
    """Warmup-stable-decay factor of ``step``; linear to zero over the last steps."""
    warm = (step + 1) / run.warmup_steps
    decay = (run.steps - step) / run.decay_steps
    return min(1.0, warm, decay)


def window_shape(step: int, run: DictConfig) -> tuple[int, int]:
    """Window length and batch size in force at ``step``."""
    for stage in run.stages:
        if stage.until is None or step < stage.until:
            return stage.length, stage.batch
    raise ValueError(f"no stage covers step {step}: leave the last 'until' null")


def build_optimizers(model: nn.Module, run: DictConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for embedding, projection to the vocabulary and norms."""
    is_matrix = {name: p.ndim == 2 and not name.endswith(VOCABULARY) for name, p in model.named_parameters()}
    matrices, others = ([p for name, p in model.named_parameters() if is_matrix[name] == wanted] for wanted in (True, False))
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr=run.muon_lr, weight_decay=run.weight_decay)]
    if others:
        optimizers.append(torch.optim.AdamW(others, lr=run.adam_lr, betas=(0.9, 0.95), weight_decay=0.0))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


class Trainer:
    """One run: a model, its data stream, its optimizers and their checkpoint."""

    def __init__(
        self, model: nn.Module, stream: Stream, run: DictConfig, checkpoint: Path, loss: Callable[[Tensor], Tensor]
    ) -> None:
        """loss: of a batch of windows, int64 [batch, length + 1]; compiled where ``run`` asks for it."""
        self.model = model
        self.stream = stream
        self.run = run
        self.checkpoint = checkpoint
        self.optimizers = build_optimizers(model, run)
        self.step = 0
        self.seconds = 0.0
        self._loss = torch.compile(loss, dynamic=False) if run.compile else loss

    def fit(self) -> None:
        """Train to the last step, saving a checkpoint every ``checkpoint_minutes``."""
        self.model.train()
        started = saved = time.monotonic()
        earlier = self.seconds
        running = 0.0
        with tqdm(total=self.run.steps, initial=self.step, mininterval=10) as bar:
            while self.step < self.run.steps:
                loss = self._train_step()
                running = loss if running == 0.0 else 0.98 * running + 0.02 * loss
                self.seconds = earlier + time.monotonic() - started
                bar.update()
                bar.set_postfix(loss=f"{running:.3f}", epoch=self.stream.epoch, refresh=False)
                if time.monotonic() - saved > 60 * self.run.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write the whole state, replacing the earlier checkpoint in one move."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stream": self.stream.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def load(self) -> None:
        """Continue from the checkpoint: same weights, same moments, same data order."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stream.load_state_dict(state["stream"])
        self.step, self.seconds = state["step"], state["seconds"]
        log.info("resumed at step %d", self.step)

    def _train_step(self) -> float:
        factor = learning_rate_factor(self.step, self.run)
        tokens = self.stream.next_batch(*window_shape(self.step, self.run))
        with torch.autocast("cpu", torch.bfloat16):
            loss = self._loss(tokens)
        loss.backward()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item()
