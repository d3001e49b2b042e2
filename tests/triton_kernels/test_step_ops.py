"""The small ops of a step against what they must amount to: attention over all keys, merged weights, the target's distribution."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from triton_kernels.cases.kv_cache import empty_cache
from triton_kernels.impls.verify_draft.torch import _draw
from triton_kernels.lab.conformance import relative_error
from triton_kernels.lora_meta import LoraMeta
from triton_kernels.ops import OPS
from triton_kernels.registry import Registry
from triton_kernels.spec import Spec

REGISTRY = Registry.load()
SPEC = Spec("cpu", "cpu", torch.float32)
NAMES = ("reference", "torch")


def bind(op: str, name: str, weights: dict[str, Any] | None = None, **params: Any) -> Any:
    return REGISTRY.impls(op)[name].bind(SPEC, weights, params)


@pytest.mark.parametrize("name", NAMES)
def test_merged_attention_is_attention_over_all_keys(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(1, 3, 5, 16, dtype=torch.float64, generator=generator)
    k, v = torch.randn(2, 1, 3, 12, 16, dtype=torch.float64, generator=generator)

    def part(keys: slice) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, keys], v[:, :, keys])
        lse = torch.logsumexp(q @ k[:, :, keys].mT / 4, dim=-1)
        return out[0].transpose(0, 1).float(), lse[0].T.float()

    out, lse = bind("merge_attention", name)(*part(slice(0, 9)), *part(slice(9, 12)))
    expected_out, expected_lse = part(slice(0, 12))
    assert relative_error(out, expected_out) < 1e-6
    assert relative_error(lse, expected_lse) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_fused_qkv_is_what_transformers_computes(name: str) -> None:
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

    generator = torch.Generator().manual_seed(1)
    qkv, positions = torch.randn(7, (4 + 2 * 2) * 16, generator=generator), torch.tensor([0, 5, 1, 90, 3, 2, 17])
    angles = torch.arange(100)[:, None] * 1e4 ** -(torch.arange(0, 16, 2) / 16)
    norms = Qwen3RMSNorm(16, 1e-5), Qwen3RMSNorm(16, 1e-5)
    for norm in norms:
        norm.weight.data = 1 + torch.randn(16, generator=generator)
    q, k, v = qkv.view(7, 8, 16).split([4, 2, 2], dim=1)
    cos, sin = (torch.cat([f(angles), f(angles)], -1)[positions] for f in (torch.cos, torch.sin))
    expected_q, expected_k = apply_rotary_pos_emb(norms[0](q), norms[1](k), cos, sin)

    kv, slots = empty_cache(4, 4, 2, 16, torch.float32, torch.device("cpu")), torch.tensor([4, 9, -1, 10, 15, 5, -1])
    weights = {"cos_sin": torch.cat([angles.cos(), angles.sin()], -1)}
    weights |= {"q_weight": norms[0].weight.data, "k_weight": norms[1].weight.data}
    got = bind("qk_norm_rotary_kv_write", name, weights, num_heads=4, num_kv_heads=2, eps=1e-5)(qkv, positions, kv, slots)
    assert relative_error(got, expected_q.detach()) < 1e-6
    written = slots >= 0
    assert relative_error(kv.k.flatten(0, 1)[slots[written]], expected_k.detach()[written]) < 1e-6
    assert torch.equal(kv.v.flatten(0, 1)[slots[written]], v[written])
    assert int(kv.k.isfinite().sum()) == int(written.sum()) * 2 * 16


@pytest.mark.parametrize("name", [*NAMES, "native"])
@pytest.mark.parametrize("slices", [(24,), (12, 4, 8)], ids=str)
def test_lora_is_a_product_with_the_merged_weight(name: str, slices: tuple[int, ...]) -> None:
    if reasons := REGISTRY.impls("lora_shrink")[name].unsupported(SPEC):
        pytest.skip(reasons[0])
    generator, rank = torch.Generator().manual_seed(2), 4
    weight, x = torch.randn(24, 20, generator=generator), torch.randn(9, 20, generator=generator)
    lora_a, lora_b = torch.randn(3, rank * len(slices), 20, generator=generator), torch.randn(3, rank, 24, generator=generator)
    scale, index = torch.rand(3, rank * len(slices), generator=generator), torch.tensor([2, -1, 0, 0, 1, -1, 2, 1, 0]).int()
    y, meta = x @ weight.T, LoraMeta(index)
    y[1, 3], y[5, 0] = torch.nan, -0.0
    before = y.clone()
    shrunk = bind("lora_shrink", name, {"lora_a": lora_a, "scale": scale})(x, meta)
    bind("lora_expand", name, {"lora_b": lora_b}, slices=slices)(y, shrunk, meta)
    scaled, parts = (scale[..., None].double() * lora_a.double()).split(rank, 1), lora_b.double().split(slices, 2)
    merged = weight.double() + torch.cat([b.mT @ a for a, b in zip(scaled, parts)], 1)
    for token, adapter in enumerate(index.tolist()):
        if adapter < 0:
            assert torch.equal(y[token].view(torch.int32), before[token].view(torch.int32))
        else:
            assert relative_error(y[token], merged[adapter] @ x[token].double()) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_tiles_of_an_expert_cover_its_pairs_and_no_others(name: str) -> None:
    ids = torch.randint(0, 9, (41, 3), generator=torch.Generator().manual_seed(3), dtype=torch.int32)
    pairs, starts, tile_expert = bind("moe_align", name, num_experts=5, expert_start=2, block_m=4)(ids)
    assert sorted(pairs.tolist()) == list(range(ids.numel()))
    covered: dict[int, list[int]] = {}
    for tile, expert in enumerate(tile_expert.tolist()):
        if expert >= 0:
            first = int(starts[expert]) + (tile - int(starts[expert]) // 4 - expert) * 4
            covered.setdefault(expert, []).extend(pairs[first : min(first + 4, int(starts[expert + 1]))].tolist())
    assert covered == {expert: (ids.flatten() == expert + 2).nonzero()[:, 0].tolist() for expert in range(5)}


@pytest.mark.parametrize("name", [*NAMES, "native"])
def test_slots_are_the_places_of_all_positions_at_these_positions(name: str) -> None:
    found = REGISTRY.impls("slot_mapping")[name]
    if found.unsupported(SPEC):
        pytest.skip(found.unsupported(SPEC)[0])
    table = torch.randperm(40, generator=torch.Generator().manual_seed(4), dtype=torch.int32).view(4, 10)[:, 2:8]
    queries, lengths = [1, 5, 2, 1], [13, 18, 0, 1]
    places = (table[:, :, None] * 3 + torch.arange(3)).flatten(1).tolist()
    expected = [places[r][n - q : n] if n else [-1] * q for r, (q, n) in enumerate(zip(queries, lengths))]
    positions = [*range(12, 13), *range(13, 18), 0, 0, 0, 7]  # the last is nobody's
    cu_q = torch.tensor([0, *queries]).cumsum(0).int()
    slots = bind("slot_mapping", name, page_size=3)(torch.tensor(positions), cu_q, torch.tensor(lengths).int(), table)
    assert slots.tolist() == [slot for part in expected for slot in part] + [-1]


def verify_args(
    num_reqs: int, logits: torch.Tensor, draft_ids: torch.Tensor, probs: torch.Tensor | None, temperature: float = 0.8
) -> list[Any]:
    """logits and probs [rows, V] are those of one request, and every request's; draft_ids int64 [num_reqs, rows - 1]."""
    rows = len(logits)
    ids = torch.nn.functional.pad(draft_ids, (0, 1), value=-1).int().flatten()
    seats = torch.arange(num_reqs)
    return [
        logits.repeat(num_reqs, 1),
        ids,
        None if probs is None else probs.repeat(num_reqs, 1),
        (torch.arange(num_reqs + 1) * rows).int(),
        seats.int(),
        torch.full((num_reqs,), temperature),
        seats * 7919 + 5,
        torch.arange(rows).repeat(num_reqs),
    ]


def chi_square(tokens: torch.Tensor, probability: torch.Tensor) -> float:
    """Of tokens that must follow f64 probability [V]; infinite if one came that cannot."""
    observed = torch.bincount(tokens, minlength=len(probability)).double()
    if bool(observed[probability == 0].any()):
        return float("inf")
    expected = probability[probability > 0] * len(tokens)
    return float(((observed[probability > 0] - expected).square() / expected).sum())


@pytest.mark.parametrize("certain", [False, True], ids=["sampled drafts", "certain drafts"])
def test_verified_tokens_follow_the_target_distribution(certain: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    num_reqs, vocab_size = 20000, 11
    logits = 1.5 * torch.randn(3, vocab_size, generator=generator)
    logits[0, 2] = -torch.inf
    p = torch.softmax(logits.double() / 0.8, -1)
    q = torch.softmax(torch.randn(3, vocab_size, generator=generator) + logits.nan_to_num(neginf=-1), -1)
    if certain:
        drafts = p[:2].argmax(-1).repeat(num_reqs, 1)
    else:
        drafts = torch.multinomial(q[:2], num_reqs, replacement=True, generator=generator).T
    tokens, accepted = bind("verify_draft", "torch")(*verify_args(num_reqs, logits, drafts, None if certain else q))
    tokens = tokens.view(num_reqs, 3).long()
    for row in range(3):
        reached = tokens[accepted >= row, row]
        assert bool((reached >= 0).all()) and bool((tokens[accepted < row, row] == -1).all())
        assert len(reached) > 1000
        assert chi_square(reached, p[row]) < 35.6, f"row {row}"  # 10 degrees of freedom: once in ten thousand
    rate = float(p[0].max() if certain else torch.minimum(p[0], q[0].double()).sum())
    assert abs(float((accepted > 0).float().mean()) - rate) < 4 * (rate * (1 - rate) / num_reqs) ** 0.5


@pytest.mark.parametrize("certain", [False, True], ids=["sampled drafts", "certain drafts"])
def test_drawing_without_a_look_at_the_data_gives_the_same_tokens(certain: bool) -> None:
    """What runs on a GPU, where picking rows would wait for the device."""
    generator = torch.Generator().manual_seed(8)
    scores, rows = 2 * torch.randn(12, 30, generator=generator), torch.tensor([0, 3, 5, 6, 9, 11])
    drafts, wanted = torch.tensor([4, 7, -1] * 4).int(), torch.tensor([True, True, True, False, True, True])
    probs = None if certain else torch.softmax(torch.randn(12, 30, generator=generator), -1)
    seed, position = torch.arange(12) * 77, torch.arange(12)
    compact, dense = (_draw(scores, drafts, probs, rows, wanted, seed, position, looks) for looks in (True, False))
    assert torch.equal(compact[wanted], dense[wanted])


@pytest.mark.parametrize("name", NAMES)
def test_greedy_verification_is_greedy_decoding(name: str) -> None:
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(40, 40, generator=generator)  # row: logits of the token that follows
    draft = (target + 0.4 * torch.randn(40, 40, generator=generator)).argmax(-1)
    verify, sequence, num_accepted = bind("verify_draft", name), [0], 0
    while len(sequence) < 60:
        drafts = [sequence[-1]]
        for _ in range(3):
            drafts.append(int(draft[drafts[-1]]))
        args = verify_args(1, target[drafts], torch.tensor([drafts[1:]]), None, temperature=0.0)
        tokens, accepted = verify(*args)
        assert tokens.tolist()[int(accepted) + 1 :] == [-1] * (3 - int(accepted))
        sequence += tokens.tolist()[: int(accepted) + 1]
        num_accepted += int(accepted)
    plain = [0]
    while len(plain) < len(sequence):
        plain.append(int(target[plain[-1]].argmax()))
    assert sequence == plain
    assert 10 < num_accepted < len(sequence) - 10, "both outcomes must occur"


@pytest.mark.parametrize("name", NAMES)
def test_the_bonus_token_is_what_sampling_gives(name: str) -> None:
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(1, 50, generator=generator)
    args = verify_args(30, logits, torch.zeros(30, 0, dtype=torch.int64), None)
    tokens, accepted = bind("verify_draft", name)(*args)
    rows, _, _, _, seats, temperature, seed, position = args
    off = torch.zeros(30, dtype=torch.int32), torch.ones(30), torch.zeros(30)
    assert torch.equal(tokens, OPS["sample"].reference(rows, seats, temperature, *off, seed, position))
    assert not bool(accepted.any()) and len(tokens.unique()) > 5


@pytest.mark.parametrize("name", NAMES)
def test_where_rounding_leaves_nothing_of_the_residual_the_target_is_drawn_from(name: str) -> None:
    logits = torch.tensor([[-torch.inf, 1.0, 0.5, 1.5], [0.0, 0.0, 0.0, 0.0]])
    probs = 1.001 * torch.softmax(logits / 0.8, -1)
    args = verify_args(40, logits, torch.zeros(40, 1, dtype=torch.int64), probs)  # token 0 cannot stand
    tokens, accepted = bind("verify_draft", name)(*args)
    assert not bool(accepted.any()) and set(tokens.view(40, 2)[:, 0].tolist()) == {1, 2, 3}


def request_alone(args: dict[str, Any], request: int) -> dict[str, Any]:
    rows = slice(*args["cu_rows"][request : request + 2].tolist())
    part = {name: args[name][rows] for name in ("logits", "draft_ids", "draft_probs", "position")}
    cu_rows = args["cu_rows"][request : request + 2] - args["cu_rows"][request]
    return {**args, **part, "cu_rows": cu_rows, "row_to_seat": args["row_to_seat"][request : request + 1]}


@pytest.mark.parametrize("name", NAMES)
def test_a_request_of_nan_harms_no_other_and_the_batch_does_not_matter(name: str) -> None:
    [case] = [case for case in OPS["verify_draft"].cases if case.name == "tiled"]
    args = case.make(torch.Generator().manual_seed(7), torch.float32, torch.device("cpu"))
    first, last = args["cu_rows"][2:4].tolist()
    verify = bind("verify_draft", name)
    tokens, accepted = verify(*args.values())
    args["logits"][first:last] = torch.nan
    broken_tokens, broken_accepted = verify(*args.values())
    assert broken_tokens[first:last].tolist() == [-1] * (last - first) and int(broken_accepted[2]) == 0
    others = torch.tensor([row for row in range(len(tokens)) if not first <= row < last])
    assert torch.equal(tokens[others], broken_tokens[others])
    for request in (0, 1, 4):
        rows = slice(*args["cu_rows"][request : request + 2].tolist())
        alone, alone_accepted = verify(*request_alone(args, request).values())
        assert torch.equal(alone, tokens[rows]) and int(alone_accepted) == int(accepted[request])
