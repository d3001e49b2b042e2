"""What a device would hold, in plain Python: checks every step against the protocol and every cache read against the tokens."""

from __future__ import annotations

import numpy as np

from ..engine.encoding import View
from ..engine.kv_cache.spec import CacheGroup, CrossKV
from ..engine.step import NewRequest, StepInput, StepOutput
from .pseudo import num_right_drafts, pseudo_tokens


class MirroredRow:
    """A seat in use. ``chain[i]`` stands for keys and values of token i: a hash of the adapter, of what an encoder read, and of the
    tokens and the images up to it; first: of what is before these. encoded: stands for those made of what the encoder gave, by the
    place in the request's part of the cache; seen: from which token on which of these places are."""

    __slots__ = (
        "chain",
        "encoded",
        "first",
        "images",
        "lora_slot",
        "num_computed",
        "num_prompt",
        "num_proposed",
        "seed",
        "seen",
        "tables",
        "tokens",
    )

    def __init__(self, request: NewRequest, adapter: str | None) -> None:
        self.lora_slot, self.images = request.lora_slot, request.images
        assert request.sampling.seed is not None
        self.seed = request.sampling.seed
        self.tokens, self.num_prompt = list(request.token_ids), request.num_prompt_tokens
        self.num_computed, self.num_proposed = request.num_computed_tokens, 0
        self.tables = [list(blocks) for blocks in request.block_ids]
        self.chain: list[int] = []
        given = request.encoder_input
        self.encoded, self.first, self.seen = dict[int, int](), hash(adapter or 0), list[View]()
        if given is None:
            return
        self.images = given.images
        self.seen = sorted(given.views or [View(0, 0, given.num_tokens)])
        if not given.images:
            read = () if given.features is None else given.features.tobytes()
            self.first = hash((self.first, given.num_tokens, read, *(given.token_ids or ())))
        places = {place for view in self.seen for place in range(view.start, view.start + view.length)}
        self.encoded = {place: hash((request.request_id, self.first, place)) for place in places}

    def extend_chain(self) -> None:
        for place in range(len(self.chain), len(self.tokens)):
            before = self.chain[-1] if self.chain else self.first
            self.chain.append(hash((before, self.tokens[place], *self._shown(place))))

    def _shown(self, place: int) -> list[int]:
        """Of the image that a token stands for, if it does. Of one that layers attend to there is but the first."""
        return [
            int.from_bytes(image.key)
            for image in self.images
            if image.start <= place < (image.start + 1 if self.seen else image.end)
        ]

    def view(self, place: int) -> View:
        """What a token sees of an encoder."""
        return next((view for view in reversed(self.seen) if view.first <= place), View(0, 0, 0))


class Mirror:
    """Slots, block tables and cache contents as the step inputs say. A violation is an AssertionError."""

    def __init__(
        self,
        num_seats: int,
        num_blocks: int,
        block_size: int,
        vocab_size: int,
        groups: tuple[CacheGroup, ...],
        num_loras: int = 0,
        num_snapshots: int | None = None,
        encoder_cache: int = 0,
        sees_images: bool = False,
    ) -> None:
        """num_loras: slots of adapters; num_snapshots: of states, None for a model that has none; encoder_cache: embeddings of
        images, at most; sees_images: what an encoder gives is that of images, which a request may be without."""
        self._embeddings, self._most_embeddings, self._sees_images = dict[bytes, int](), encoder_cache, sees_images
        self._snapshots: list[int | None] | None = None if num_snapshots is None else [None] * num_snapshots
        self._adapters: list[str | None] = [None] * num_loras
        self._block_size, self._vocab_size, self._groups = block_size, vocab_size, groups
        self._cross = [group for group, found in enumerate(groups) if isinstance(found.spec, CrossKV)]
        self._own = [group for group in range(len(groups)) if group not in self._cross]
        self._rows: list[MirroredRow | None] = [None] * num_seats
        self._contents: list[list[tuple[int, int] | None]] = [[None] * block_size for _ in range(num_blocks)]
        self._next_step = 0

    def apply(self, step: StepInput) -> StepOutput:
        """Runs a step: reads what its rows can see, writes what they compute, samples."""
        assert step.step_id >= self._next_step, "steps are numbered in the order of submission"
        self._next_step = step.step_id + 1
        self._apply_deltas(step)
        self._check_shape(step)
        output = self._run(step, [self._row(seat) for seat in step.seats])
        for seat, snapshot in step.snapshots:
            assert self._snapshots is not None, "there are no states"
            row = self._row(seat)
            self._snapshots[snapshot] = row.chain[row.num_computed - 1]
        return output

    def _run(self, step: StepInput, rows: list[MirroredRow]) -> StepOutput:
        self._check_drafts(step)
        written: set[tuple[int, int]] = set()
        drafts = [max(num_logits - 1, 0) for num_logits in step.num_logits]
        for row, count, num_drafts in zip(rows, step.num_tokens, drafts):
            self._write(row, count - num_drafts, written)
            self._write_wrong(row, count - num_drafts, num_drafts, written)
        tokens, accepted = [], []
        for row, count, num_logits, num_drafts in zip(rows, step.num_tokens, step.num_logits, drafts):
            self._compute(row, count - num_drafts)
            samples = row.num_computed == len(row.tokens)
            assert samples == bool(num_logits), "a row samples exactly when it computes its last known token"
            if not samples:
                continue
            sampled = [self._sample(row)]
            row.tokens.append(sampled[0])
            for _ in range(self._num_right(row, num_drafts)):
                self._write(row, 1, set())  # what was guessed right was written already
                self._compute(row, 1)
                sampled.append(self._sample(row))
                row.tokens.append(sampled[-1])
            tokens += sampled
            accepted.append(len(sampled) - 1)
        return StepOutput(step.step_id, tokens, accepted if any(drafts) else None)

    def _apply_deltas(self, step: StepInput) -> None:
        for seat in step.released:
            self._rows[seat] = None
        for slot, key in step.lora_loads:
            assert 0 <= slot < len(self._adapters), f"there is no slot {slot}"
            assert all(row is None or row.lora_slot != slot for row in self._rows), f"slot {slot} is in use"
            self._adapters[slot] = key
        for name in step.forgotten:
            self._embeddings.pop(name, None)
        if self._sees_images:  # those that only pass are forgotten by the next step
            self._check_room()
        for image in step.images:
            assert image.key not in self._embeddings, "an image is encoded whose embeddings are there"
            self._embeddings[image.key] = image.count
        if not self._sees_images:
            self._check_room()
        for request in step.new:
            assert self._rows[request.seat] is None, f"seat {request.seat} is in use"
            assert 0 <= request.num_computed_tokens < len(request.token_ids), "at least one token is left to compute"
            assert len(request.block_ids) == len(self._groups)
            adapter = None if request.lora_slot < 0 else self._adapters[request.lora_slot]
            assert request.lora_slot < 0 or adapter is not None, f"slot {request.lora_slot} is empty"
            row = self._rows[request.seat] = MirroredRow(request, adapter)
            self._check_states(row, request.snapshot)
            self._write_encoded(row)
        for seat, group, blocks in step.new_blocks:
            assert group not in self._cross, f"seat {seat} has more blocks for what an encoder gave"
            self._row(seat).tables[group] += blocks
        for _, source, destination in step.copies:
            assert source != destination
            self._contents[destination] = list(self._contents[source])

    def _check_room(self) -> None:
        assert sum(self._embeddings.values()) <= self._most_embeddings, "more embeddings are kept than there is room for"

    def _check_states(self, row: MirroredRow, snapshot: int) -> None:
        """A row starts from its beginning, or where the states are those of its tokens."""
        if self._snapshots is None or snapshot < 0:
            assert snapshot < 0 and (self._snapshots is None or not row.num_computed), "states are missing, or nobody has them"
            return
        row.extend_chain()
        assert self._snapshots[snapshot] == row.chain[row.num_computed - 1], f"snapshot {snapshot} is of other tokens"

    def _write_encoded(self, row: MirroredRow) -> None:
        """What an encoder gave, in blocks that nobody else has: once, and as many as it takes."""
        is_missing = not row.encoded and not self._sees_images
        assert not is_missing if self._cross else not row.encoded, "what an encoder gave is missing, or nobody attends to it"
        for image in row.images if row.encoded else ():
            assert image.key in self._embeddings, f"the image at token {image.start} is not encoded"
        for group in self._cross:
            table, size, end = row.tables[group], self._block_size, max(row.encoded, default=-1) + 1
            assert len(table) == -(-end // size), f"{len(table)} blocks for {end} vectors of an encoder"
            held = [block for other in self._rows if other is not None for blocks in other.tables for block in blocks]
            assert all(held.count(block) == 1 for block in table), "a block for what an encoder gave is another's, too"
            for place, content in row.encoded.items():
                block, offset = self._place(row, group, place)
                self._contents[block][offset] = group, content

    def _check_shape(self, step: StepInput) -> None:
        assert step.seats and len(step.seats) == len(step.num_tokens) == len(step.num_logits)
        assert len(set(step.seats)) == len(step.seats), "a seat computes once per step"
        assert all(count >= 1 for count in step.num_tokens)
        places = [0 if count == 1 else 1 if wanted > 1 else 2 for count, wanted in zip(step.num_tokens, step.num_logits)]
        assert places == sorted(places), "rows with one token come first, then those with drafts"
        assert all(0 <= wanted <= count for wanted, count in zip(step.num_logits, step.num_tokens)), "a logit row has its token"

    def _check_drafts(self, step: StepInput) -> None:
        if step.num_computed is None:
            assert max(step.num_logits) <= 1, "who drafts counts what is computed"
            return
        given = [None] * len(step.seats) if step.drafts is None else step.drafts
        for seat, most, wanted, drafts in zip(step.seats, step.num_computed, step.num_logits, given, strict=True):
            row = self._row(seat)
            assert row.num_computed <= most, f"seat {seat} has computed more than its bound"
            if drafts is None:
                assert wanted - 1 <= row.num_proposed, f"seat {seat} has drafts checked that nobody proposed"
            else:
                assert len(drafts) == max(wanted - 1, 0), f"seat {seat} has other drafts than it has checked"
                assert not drafts or row.num_computed == most, f"seat {seat} has drafts behind tokens that are not known"
            row.num_proposed = step.num_proposals if wanted else 0

    def _row(self, seat: int) -> MirroredRow:
        row = self._rows[seat]
        assert row is not None, f"seat {seat} is not in use"
        return row

    def _write(self, row: MirroredRow, count: int, written: set[tuple[int, int]]) -> None:
        row.extend_chain()
        assert row.num_computed + count <= len(row.tokens), "a row computes tokens that are not known"
        self._write_places(row, row.num_computed, row.num_computed + count, written)

    def _write_places(self, row: MirroredRow, first: int, end: int, written: set[tuple[int, int]]) -> None:
        """As the chain has them."""
        for group in self._own:
            for position in range(first, end):
                block, offset = self._place(row, group, position)
                assert (block, offset) not in written, f"two rows write block {block}"
                written.add((block, offset))
                self._contents[block][offset] = group, row.chain[position]

    def _write_wrong(self, row: MirroredRow, start: int, count: int, written: set[tuple[int, int]]) -> None:
        """Guesses, taken for wrong until they are checked."""
        for group in self._own:
            for position in range(row.num_computed + start, row.num_computed + start + count):
                block, offset = self._place(row, group, position)
                assert (block, offset) not in written, f"two rows write block {block}"
                written.add((block, offset))
                self._contents[block][offset] = None

    def _compute(self, row: MirroredRow, count: int) -> None:
        start, end = row.num_computed, row.num_computed + count
        for image in row.images if not row.encoded else ():
            if image.start < end and start < image.end:
                assert image.key in self._embeddings, f"the image at token {image.start} is not encoded"
        self._check_reads(row, start, count)
        row.num_computed += count

    def _check_reads(self, row: MirroredRow, start: int, count: int) -> None:
        for group in self._own:
            window = self._groups[group].spec.window
            first = 0 if window is None else max(0, start - window + 1)
            for position in range(first, start + count):
                self._check_read(row, group, position, row.chain[position])
        for group in self._cross:
            for view in {row.view(position) for position in range(start, start + count)}:
                assert view.start % self._block_size == 0, "what tokens see begins within a block"
                for place in range(view.start, view.start + view.length):
                    self._check_read(row, group, place, row.encoded[place])

    def _check_read(self, row: MirroredRow, group: int, position: int, content: int) -> None:
        block, offset = self._place(row, group, position)
        assert self._contents[block][offset] == (group, content), (
            f"block {block} does not hold token {position} of the row that reads it"
        )

    def _place(self, row: MirroredRow, group: int, position: int) -> tuple[int, int]:
        index, offset = divmod(position, self._block_size)
        assert index < len(row.tables[group]), f"position {position} has no block"
        block = row.tables[group][index]
        assert block != 0, f"position {position} lies in the null block"
        return block, offset

    def _num_right(self, row: MirroredRow, num_drafts: int) -> int:
        state, position = np.array([row.seed & (2**64 - 1)], dtype=np.uint64), np.array([row.num_computed], dtype=np.uint64)
        return int(num_right_drafts(state, position, np.array([num_drafts]))[0])

    def _sample(self, row: MirroredRow) -> int:
        state = np.array([(row.seed ^ row.chain[-1]) & (2**64 - 1)], dtype=np.uint64)
        return int(pseudo_tokens(state, np.array([len(row.tokens)], dtype=np.uint64), self._vocab_size)[0])
