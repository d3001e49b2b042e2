from collections import Counter

import numpy as np

from framework.study.capture import reduce


def test_few_shapes_stay_as_they_are() -> None:
    shapes = {((1, 1), (9, 4)): 5, ((3,), ()): 7}
    assert reduce(shapes, limit=2) == ([((3,), (), 7), ((1, 1), (9, 4), 5)], 0.0)


def test_totals_and_raggedness_survive() -> None:
    """Batches as a server makes them: 1 to 40 requests, lengths spread over two orders of magnitude."""
    rng = np.random.default_rng(0)
    shapes: Counter[tuple[tuple[int, ...], tuple[int, ...]]] = Counter()
    for _ in range(1500):
        num = int(rng.integers(1, 41))
        ctx_lens = tuple(np.exp(rng.uniform(np.log(20), np.log(4000), num)).astype(int).tolist())
        shapes[(1,) * num, ctx_lens] += int(rng.integers(1, 9))
    reduced, octaves = reduce(shapes, limit=32)
    assert len(reduced) <= 32 and 0 < octaves <= 2
    calls = sum(shapes.values())
    assert sum(count for *_, count in reduced) == calls
    for part in (0, 1):
        before = sum(count * sum(lens[part]) for lens, count in shapes.items())
        after = sum(case[2] * sum(case[part]) for case in reduced)
        assert abs(after - before) <= (0.5 if part else 20) * calls  # a token per call is rounded; requests are whole
    requests = sum(count * len(q_lens) for (q_lens, _), count in shapes.items())
    assert abs(sum(count * len(q_lens) for q_lens, _, count in reduced) - requests) < 0.02 * requests
    spread = [max(ctx_lens) / np.mean(ctx_lens) for q_lens, ctx_lens, _ in reduced if len(q_lens) > 16]
    assert min(spread) > 2.5  # 4000 over a mean of 750 is 5; even batches would have 1


def test_chunks_and_decodes_keep_their_place() -> None:
    """A chunk is the longest request's; where a call has no context at all, its padding stays padding."""
    shapes = {((1, 1, 64 + i), (10, 0, 500 + i)): 1 for i in range(8)}
    (case,), _ = reduce(shapes, limit=1)
    assert case == ((68, 1, 1), (504, 10, 0), 8)


def test_calls_without_contexts_are_of_the_mean_size() -> None:
    (case,), octaves = reduce({((100 + i,), ()): 1 for i in range(5)}, limit=1)
    assert case == ((102,), (), 5) and octaves <= 0.25
