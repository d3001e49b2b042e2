"""Faults to plant, for ``mutate.py``: where, what stands there, what to put in its place. Each text stands there exactly once."""

from __future__ import annotations

from dataclasses import dataclass

_SCHEDULER = "framework/engine/scheduler.py"
_ENGINE = "framework/engine/engine.py"
_MANAGER = "framework/engine/kv_cache/manager.py"
_POOL = "framework/engine/kv_cache/pool.py"
_PREFIX = "framework/engine/kv_cache/prefix.py"
_RUNNER = "framework/worker/runner.py"
_ROWS = "framework/worker/request_rows.py"
_SAMPLER = "framework/worker/sampler.py"
_PENALTIES = "framework/worker/penalties.py"
_OUTPUT = "framework/engine/output_processor.py"
_DETOKENIZER = "framework/engine/detokenizer.py"
_ASYNC = "framework/async_engine.py"
_CLIENT = "framework/engine_client.py"
_PROCESS = "framework/engine_process.py"
_RECORDING = "triton_kernels/impls/_shared/recording.py"
_GRAPHS = "framework/worker/decode_graphs.py"
_DEVICES = "framework/worker/devices.py"
_QUANTIZATION = "framework/models/quantization/"
_LINEAR = "framework/models/layers/linear.py"
_PLAN = "framework/plan.py"
_GPTQ_SEARCH = "framework/quantize/gptq.py"
_QUALITY = "framework/worker/teacher_forcing.py"


@dataclass(frozen=True)
class Mutant:
    """A fault: ``old`` in ``file`` becomes ``new``."""

    name: str
    file: str
    old: str
    new: str


_BLOCK_TESTS = ["tests/framework/engine/test_kv_cache.py", "tests/framework/engine/test_kv_cache_properties.py"]
_ENGINE_TESTS = ["tests/framework/engine/test_scheduler.py", "tests/framework/engine/test_engine.py"]
_TEXT_TESTS = [
    "tests/framework/engine/test_detokenizer.py",
    "tests/framework/engine/test_outputs.py",
    "tests/test_outputs_agree.py",
]
_TOKEN_TESTS = ["tests/test_sampling_oracle.py", "tests/test_against_transformers.py"]
_RECORDING_TESTS = ["tests/triton_kernels/test_recording.py", "tests/framework/worker/test_decode_graphs.py"]
_QUANTIZATION_TESTS = ["tests/framework/models/quantization", "tests/framework/models/test_public_checkpoints.py"]
_PROCESS_TESTS = ["tests/framework/test_engine_process.py", "tests/framework/test_async_engine.py"]

TESTS: dict[str, list[str]] = {
    _SCHEDULER: [*_ENGINE_TESTS, *_TOKEN_TESTS],
    _ENGINE: [*_ENGINE_TESTS, *_TEXT_TESTS, *_TOKEN_TESTS],
    _MANAGER: [*_BLOCK_TESTS, *_ENGINE_TESTS, *_TOKEN_TESTS],
    _POOL: [*_BLOCK_TESTS, *_ENGINE_TESTS],
    _PREFIX: [*_BLOCK_TESTS, *_ENGINE_TESTS],
    _RUNNER: _TOKEN_TESTS,
    _ROWS: _TOKEN_TESTS,
    _SAMPLER: _TOKEN_TESTS,
    _PENALTIES: ["tests/framework/worker/test_bad_words.py", *_TOKEN_TESTS],
    _OUTPUT: _TEXT_TESTS,
    _DETOKENIZER: _TEXT_TESTS,
    _ASYNC: _PROCESS_TESTS,
    _CLIENT: _PROCESS_TESTS,
    _PROCESS: _PROCESS_TESTS,
    _RECORDING: _RECORDING_TESTS,
    _GRAPHS: _RECORDING_TESTS,
    _DEVICES: _RECORDING_TESTS,
    **{
        f"{_QUANTIZATION}{name}.py": _QUANTIZATION_TESTS
        for name in ("packing", "canonical", "modules", "experts", "gptq", "compressed_tensors", "on_load", "kv_scales")
    },
    _LINEAR: _QUANTIZATION_TESTS,
    _PLAN: ["tests/framework/models/quantization/test_on_load.py"],
    _GPTQ_SEARCH: ["tests/framework/quantize/test_gptq.py"],
    _QUALITY: ["tests/framework/worker/test_teacher_forcing.py"],
}
"""The tests that are to notice a fault in a file, quick ones first."""

MUTANTS = [
    # Who computes what.
    Mutant("decodes cost no budget", _SCHEDULER, "decodes.append(request)", "decodes.append(request); budget += 1"),
    Mutant("the first in order is preempted", _SCHEDULER, "victim = self.running.pop()", "victim = self.running.pop(0)"),
    Mutant(
        "requests are admitted in a step that preempts",
        _SCHEDULER,
        "if num_preemptions == self.counters.num_preemptions:",
        "if True:",
    ),
    Mutant("one token too many", _SCHEDULER, "elif length >= request.max_total:", "elif length > request.max_total:"),
    Mutant(
        "tokens sampled after the end are delivered",
        _SCHEDULER,
        "if request.status == Status.FINISHED:\n            return False",
        "if request.status == Status.FINISHED:\n            return True",
    ),
    Mutant(
        "a stop token does not say which it was",
        _SCHEDULER,
        'self.finish(request, "stop", token if token in (request.params.stop_token_ids or ()) else None)',
        'self.finish(request, "stop")',
    ),
    Mutant("a seat is given twice", _SCHEDULER, "request.seat = self._free_seats.pop()", "request.seat = self._free_seats[-1]"),
    Mutant("a request resumes before its steps in flight are done", _SCHEDULER, "request.num_stale_steps = sum(", "_ = sum("),
    Mutant("a fork from a leader that was preempted", _SCHEDULER, " and not leader.num_preemptions:", ":"),
    Mutant(
        "chunks of any size",
        _SCHEDULER,
        "count = min(missing, budget, self._max_chunk)\n            if",
        "count = min(missing, budget)\n            if",
    ),
    Mutant(
        "prompt logprobs of a chunk start at its end",
        _SCHEDULER,
        "(request, chunk.end - chunk.num_tokens, ",
        "(request, chunk.end, ",
    ),
    # The engine.
    Mutant("parallel completions have one seed", _ENGINE, "own.seed = params.seed + index", "own.seed = params.seed"),
    Mutant("stop strings do not end the request", _ENGINE, 'self.scheduler.finish(request, "stop", request.stop_reason)', "pass"),
    # Blocks.
    Mutant("a prefix hit of the whole prompt", _MANAGER, "limit = (request.num_tokens - 1) //", "limit = request.num_tokens //"),
    Mutant("blocks of a prefix hit are not referenced", _MANAGER, "        self.pool.share(shared)\n", ""),
    Mutant("forks do not reference what they share", _MANAGER, "            self.pool.share(shared[group][:num_full])\n", ""),
    Mutant(
        "the partial block of a fork is not copied", _MANAGER, "copies.append((group, shared[group][num_full], own[0]))", "pass"
    ),
    Mutant("blocks leave the window one token early", _MANAGER, "num_computed - window + 1)", "num_computed - window + 2)"),
    Mutant(
        "blocks are found before they are full",
        _MANAGER,
        "num_full = num_computed // self.block_size\n",
        "num_full = self._ceil(num_computed)\n",
    ),
    Mutant("a window's hit ends one block short", _MANAGER, "if found == wanted:", "if found == wanted - 1:"),
    Mutant(
        "blocks of a chunk are reserved for no more than it",
        _MANAGER,
        "needed = max(num_reserved - len(shared), num_new",
        "needed = max(0, num_new",
    ),
    Mutant("an evicted block can still be found", _POOL, "                self._forget(block)\n", ""),
    Mutant("the latest used is evicted first", _POOL, "popitem(last=False)", "popitem(last=True)"),
    Mutant(
        "a block is free while another request holds it",
        _POOL,
        "                if counts[block] == 0:\n                    if block in",
        "                if True:\n                    if block in",
    ),
    Mutant("the same content is remembered twice", _POOL, " and key not in self._block_of[group]:", ":"),
    Mutant("the hash of a block forgets those before", _PREFIX, "digest = blake2b(parent, ", 'digest = blake2b(b"", '),
    Mutant("the hash of a block forgets the salt", _PREFIX, "    for key in keys:", "    for key in ():"),
    # Rows and batches.
    Mutant(
        "positions frozen past token 64",
        _RUNNER,
        "return ForwardBatch(token_ids, token_positions,",
        "return ForwardBatch(token_ids, token_positions.clamp(max=64),",
    ),
    Mutant("prompt logprobs are those of the first row", _RUNNER, "hidden[start : start + count]", "hidden[:count]"),
    Mutant(
        "prompt logprobs of rows that are not first are shifted",
        _RUNNER,
        "start, first = int(rows.bounds[row]), ",
        "start, first = max(int(rows.bounds[row]) - 1, 0), ",
    ),
    Mutant(
        "prompt logprobs of the token before",
        _RUNNER,
        "self.rows.tokens[seat, first + 1 : first + 1 + count]",
        "self.rows.tokens[seat, first : first + count]",
    ),
    Mutant("sampled tokens are not written back", _RUNNER, " = tokens.long().clamp_min(0)", "  # noqa: B018"),
    Mutant("blocks are not copied", _RUNNER, "        self._copy(step.copies)\n", ""),
    Mutant(
        "decodes of the second row on see the first one's table",
        _RUNNER,
        "seq_lens, block_table[part], int(",
        "seq_lens, block_table[part][:1].expand(len(counts), -1), int(",
    ),
    Mutant("a prefix hit is computed as if it were not", _ROWS, "] = request.num_computed_tokens", "] = 0"),
    Mutant("what was generated before a preemption is prompt", _ROWS, "] = request.num_prompt_tokens", "] = len(ids)"),
    Mutant(
        "further blocks replace the last one",
        _ROWS,
        "start = self._num_blocks[group][seat]",
        "start = max(self._num_blocks[group][seat] - 1, 0)",
    ),
    # Sampling.
    Mutant("min_p dropped", _SAMPLER, "self.min_p[seat] = params.min_p", "self.min_p[seat] = 0.0"),
    Mutant("top_p of the seat's previous user", _SAMPLER, "        self.top_p[seat] = params.top_p\n", ""),
    Mutant("seeds of 32 bits", _SAMPLER, "    seed &= 2**64 - 1\n", "    seed &= 2**32 - 1\n"),
    Mutant("logprobs after penalties", _SAMPLER, "[self._gather(raw, ", "[self._gather(logits[chosen], "),
    Mutant(
        "bad words begin in the prompt",
        _PENALTIES,
        "if len(word) > 1 and start >= self._num_prompt_tokens[seat]:",
        "if len(word) > 1:",
    ),
    Mutant(
        "allowed_token_ids ignored alone",
        _PENALTIES,
        "bool(params.allowed_token_ids or params.min_tokens",
        "bool(params.min_tokens",
    ),
    Mutant(
        "allowed_token_ids ignored with min_tokens",
        _PENALTIES,
        "if params.allowed_token_ids:",
        "if params.allowed_token_ids and not params.min_tokens:",
    ),
    Mutant(
        "min_tokens mask one token too long",
        _PENALTIES,
        "self._num_prompt_tokens[seat] < params.min_tokens:",
        "self._num_prompt_tokens[seat] <= params.min_tokens:",
    ),
    Mutant(
        "min_tokens mask one token too short",
        _PENALTIES,
        "self._num_prompt_tokens[seat] < params.min_tokens:",
        "self._num_prompt_tokens[seat] + 1 < params.min_tokens:",
    ),
    Mutant("logit bias of the seat's previous user", _PENALTIES, "        self.bias_ids[seat] = -1\n", ""),
    Mutant(
        "prompt mask of the seat's previous user",
        _PENALTIES,
        "self.prompt_mask[seat] = to_device(",
        "self.prompt_mask[seat] |= to_device(",
    ),
    Mutant(
        "output counts of the seat's previous user",
        _PENALTIES,
        "self.output_counts[seat] = to_device(",
        "self.output_counts[seat] += to_device(",
    ),
    Mutant(
        "output counts not restored on resume",
        _PENALTIES,
        "self.output_counts[seat] = to_device(counts",
        "self.output_counts[seat] = to_device(0 * counts",
    ),
    Mutant(
        "penalties of the seat's previous user",
        _PENALTIES,
        "seats = torch.where(to_device(",
        "seats = rows.row_to_seat; _ = torch.where(to_device(",
    ),
    Mutant(
        "frequency penalty counts as presence",
        _PENALTIES,
        "self.frequency[seat] = params.frequency_penalty",
        "self.frequency[seat] = params.presence_penalty",
    ),
    Mutant(
        "every token counts twice", _PENALTIES, "(tokens >= 0).int(), accumulate=True)", "2 * (tokens >= 0).int(), accumulate=True)"
    ),
    # Outputs.
    Mutant(
        "stop strings before min_tokens count",
        _OUTPUT,
        "search=request.num_output_tokens > request.params.min_tokens",
        "search=True",
    ),
    Mutant("deltas repeat all logprobs", _OUTPUT, "self.logprobs[len(self.logprobs) - len(token_ids) :]", "self.logprobs"),
    Mutant("characters in pieces are lost at the end", _OUTPUT, "            text += detokenizer.flush()\n", "            pass\n"),
    Mutant(
        "what may become a stop string is lost at the end",
        _OUTPUT,
        "                text += self.stop_strings.flush()\n",
        "                pass\n",
    ),
    Mutant("the text of a stop token is never told", _OUTPUT, " or request.params.include_stop_str_in_output):", "):"),
    Mutant("ranks from 0", _OUTPUT, "found.top_logprobs), 1)", "found.top_logprobs), 0)"),
    Mutant("prompt logprobs come again when a request resumes", _OUTPUT, "in entries[len(known) - 1 - first :]]", "in entries]"),
    Mutant("stop strings are sought in the new text only", _DETOKENIZER, "max(0, old - len(stop) + 1))", "old)"),
    Mutant("the last stop string given wins", _DETOKENIZER, "at, _, stop = min(found)", "at, _, stop = found[-1]"),
    Mutant("nothing is held back", _DETOKENIZER, "self._held = 0 if self._include else min(", "self._held = 0 * min("),
    Mutant("special tokens are told", _DETOKENIZER, '["" if i in special else text for', "[text for"),
    Mutant(
        "characters in pieces are told piece by piece",
        _DETOKENIZER,
        "if text is not None and (not self._pending or not text):",
        "if text is not None:",
    ),
    # Streams.
    Mutant("AsyncEngine never aborts", _ASYNC, "self._client.close(stream.key, abort=not stream.finished)", "pass"),
    Mutant("abort() does nothing", _ASYNC, "                self._client.abort(stream.key)", "                pass"),
    Mutant(
        "streams are not told that the engine is dead", _CLIENT, "        self._hand_on((key, self.dead_error) for key in keys)", ""
    ),
    Mutant("a closed loop ends the reader", _CLIENT, "except RuntimeError:  # the loop is closed", "except KeyError:  #"),
    Mutant("the engine's process passes over aborts", _PROCESS, "_send(pipe, engine.abort([key]))", "pass"),
    Mutant(
        "the engine's process reads no message while it works",
        _PROCESS,
        "while not engine.has_unfinished() or pipe.poll():",
        "while not engine.has_unfinished():",
    ),
    # Recordings on a CPU.
    Mutant(
        "a recording forgets what its kernels read", _RECORDING, "if not self._arena.owns(tensor))", "if self._arena.owns(tensor))"
    ),
    Mutant("a recording keeps everything", _RECORDING, "if not self._arena.owns(tensor))", ")"),
    Mutant(
        "memory is free while it is in use",
        _RECORDING,
        "weakref.finalize(part, lambda: self._free.append(block))",
        "self._free.append(block)",
    ),
    Mutant("memory is never free", _RECORDING, "weakref.finalize(part, lambda: self._free.append(block))", "pass"),
    Mutant("too small a block serves", _RECORDING, "if len(block) >= size]", "if len(block) * 4 >= size]"),
    Mutant(
        "what is done in place is done once",
        _RECORDING,
        "        if func._schema.is_mutable:\n            self._add(again)",
        "        if func._schema.is_mutable:\n            pass",
    ),
    Mutant(
        "what torch computes is computed once", _RECORDING, "        elif not _is_view(result, args):\n", "        elif False:\n"
    ),
    Mutant(
        "kernels run behind the torch operations that follow them",
        _RECORDING,
        "        self._end_kernels()\n        self._parts.append(part)",
        "        self._parts.append(part)",
    ),
    Mutant("a mask selects in a recording", _RECORDING, "i is not None and i.dtype == torch.bool", "i is None"),
    Mutant("composite functions are recorded whole", _RECORDING, "= func.decompose(*args, **kwargs)", "= NotImplemented"),
    Mutant("the recorder stays", _RECORDING, "        RECORDER.reset(token)", "        pass"),
    Mutant(
        "a recording does not keep its memory",
        _RECORDING,
        "mode.finish(), output, arena, mode",
        "mode.finish(), output, None, mode",
    ),
    Mutant("every step is recorded anew", _DEVICES, "                if recording is not None:\n", "                if False:\n"),
    Mutant(
        "padding has a length",
        _GRAPHS,
        "lengths[:count] = torch.from_numpy(positions + 1)",
        "lengths.fill_(1)[:count] = torch.from_numpy(positions + 1)",
    ),
    Mutant(
        "tables of the step before",
        _GRAPHS,
        "        self._tables[:, :count, :width].copy_(tables, non_blocking=True)\n",
        "        self._tables[:, :1, :width].copy_(tables[:, :1], non_blocking=True)\n",
    ),
    # What checkpoints hold.
    Mutant(
        "columns of AWQ in the order of nibbles",
        _QUANTIZATION + "packing.py",
        "columns[..., list(AWQ_COLUMN_OF_NIBBLE)] = nibbles",
        "columns[:] = nibbles",
    ),
    Mutant("values of 3 bits end with their word", _QUANTIZATION + "packing.py", "((low | high) &", "(low &"),
    Mutant(
        "2 and 3 bits keep their middle",
        _QUANTIZATION + "canonical.py",
        "quantized = quantized + (SYMMETRIC_ZERO - middle)",
        "pass",
    ),
    Mutant("activations have no zero point", _QUANTIZATION + "canonical.py", '"static_zero": input_zero}', '"static_zero": None}'),
    Mutant("blocks have activations per token", _QUANTIZATION + "canonical.py", '"group" if blocks else "token"}', '"token"}'),
    Mutant(
        "rows of fused projections stay head by head",
        _QUANTIZATION + "modules.py",
        'if part.layout != "interleaved":\n        return loaded',
        "return loaded",
    ),
    Mutant(
        "shards of other orders are joined", _QUANTIZATION + "modules.py", 'if not same(a.get("perm"), b.get("perm")):', "if False:"
    ),
    Mutant("zero points of experts are lost", _QUANTIZATION + "experts.py", 'rows.copy_(part.tensors["zeros"])', "pass"),
    Mutant(
        "zero points of the first version are one too small",
        _QUANTIZATION + "gptq.py",
        "if whole and self.zero_offset:",
        "if False:",
    ),
    Mutant(
        "act-order is ignored",
        _QUANTIZATION + "gptq.py",
        "            quantized = quantized[:, perm.long()]\n",
        "            perm = None\n",
    ),
    Mutant(
        "zero points of compressed-tensors along the inputs",
        _QUANTIZATION + "compressed_tensors.py",
        "unpack_words(zero_words.T.contiguous(), self.bits).T[: module.rows]",
        "torch.full(scales.shape, 1 << (self.bits - 1), dtype=torch.uint8)",
    ),
    Mutant(
        "routers are quantized on load",
        _QUANTIZATION + "on_load.py",
        "        if not part.quantizable:\n            return super().linear(part, source)\n",
        "",
    ),
    Mutant(
        "scales of the cache are not read",
        _QUANTIZATION + "kv_scales.py",
        "return scale if bool(scale > 0) else None",
        "return None",
    ),
    Mutant("a gemm's note is dropped", _LINEAR, "part.params, note=part.note)", "part.params)"),
    Mutant(
        "quantized inputs lose their zero point",
        _LINEAR,
        'rest = (part.input.tensors.get("static_zero"),) if takes_zero else ()',
        "rest = (None,) if takes_zero else ()",
    ),
    Mutant("a named quantize_activation is fused away", _PLAN, 'if "quantize_activation" in self.choices.named or', "if"),
    Mutant(
        "errors of rounding are not made up for",
        _GPTQ_SEARCH,
        "now[:, i:] -= errors[:, i : i + 1] * inverse[i, i : now.shape[1]]",
        "pass",
    ),
]
