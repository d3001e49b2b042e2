"""From what users pass (text, token ids, chat messages, partial parameters) to what the engine takes."""

from __future__ import annotations

import copy
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from ..multimodal.places import BREAK, ImagePlaces
from ..sampling_params import MAX_LOGPROBS, RequestOutputKind, SamplingParams, is_integer, is_unicode
from .chat import ChatTemplate
from .encoding import EncoderPrompts
from .images import ImageProcessor, check_reads_images
from .prompts import EngineInput, Prompt
from .tokenizer import token_ids_of_words

_PROMPT_KEYS = ("prompt", "prompt_token_ids", "cache_salt", "multi_modal_data")
_IMAGE_TOKEN = 0
"""Stands for an image, which is no text, where tokens are counted."""
_IN_ORDER = ("repetition_penalty", "frequency_penalty", "presence_penalty", "bad_words", "structured_outputs", "prompt_logprobs")
"""Sampling parameters that make something of the tokens before."""
_GENERATION_DEFAULTS = ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")


class InputProcessor:
    """Tokenizes prompts and completes sampling parameters for one model.

    tokenizer      None: prompts come as token ids, and outputs have no text
    generation     as in generation_config.json: what default parameters are made of
    eos_token_ids  tokens that end a sequence
    max_logprobs   most log-probabilities per token that a request may ask for; -1 = no limit; None: the executor makes tokens up
    images         of a model that embeds images; None: it does not
    image_prompts  of a model that reads images among text; None: it does not, and no_images says why
    encoding       of an encoder-decoder; None: it is none
    denoises       the model generates by block diffusion
    mask_token_id  what stands for tokens that are not settled there; None: random ones
    """

    def __init__(
        self,
        tokenizer: Any,
        generation: Mapping[str, Any],
        eos_token_ids: Iterable[int],
        max_logprobs: int | None = MAX_LOGPROBS,
        images: ImageProcessor | None = None,
        image_prompts: ImagePlaces | None = None,
        no_images: str = "the model reads text alone",
        encoding: EncoderPrompts | None = None,
        denoises: bool = False,
        mask_token_id: int | None = None,
    ) -> None:
        self.tokenizer, self._generation, self.max_logprobs, self.images = tokenizer, generation, max_logprobs, images
        self.image_prompts, self.no_images, self.encoding = image_prompts, no_images, encoding
        self.denoises, self.mask_token_id = denoises, mask_token_id
        self.chat_template = ChatTemplate(tokenizer, image_prompts, no_images)
        self.eos_token_ids = frozenset(eos_token_ids)
        self._never, self._never_first = (_suppressed(generation, name) for name in ("suppress_tokens", "begin_suppress_tokens"))

    @property
    def placeholder(self) -> int | None:
        """The token that stands for an image in prompts, where layers attend to images, and has no logit; None: there is none."""
        prompts = self.image_prompts
        return None if prompts is None or prompts.views is None else prompts.token_id

    def default_params(self) -> SamplingParams:
        """What the generation config recommends, over the defaults of SamplingParams."""
        given = {k: v for k, v in self._generation.items() if k in _GENERATION_DEFAULTS and v is not None}
        if self.denoises:
            given = {name: value for name, value in given.items() if name not in _IN_ORDER}
        if self.max_new_tokens is not None:
            given["max_tokens"] = self.max_new_tokens
        return SamplingParams(**given)

    @property
    def max_new_tokens(self) -> int | None:
        """How long outputs are to be at most, as the generation config recommends."""
        return self._generation.get("max_new_tokens")

    def checked(self, params: SamplingParams | None) -> SamplingParams:
        """A private copy. Quick; raises ValueError for what holds for no model, and for what is no SamplingParams."""
        if params is None:
            return self.default_params()
        if not isinstance(params, SamplingParams):
            raise ValueError(f"sampling parameters must be SamplingParams, as SamplingParams(max_tokens=3); found {params!r}")
        own = copy.copy(params)
        own.validate()  # which gives the copy containers of its own
        return own

    def params(self, params: SamplingParams | None, output_kind: RequestOutputKind | None = None) -> SamplingParams:
        """A private copy, checked, and completed with what needs the model: tokens that end it, bad words as tokens, and
        tokens that it never samples, or not as the first, as the generation config says.

        output_kind  instead of the parameters' own
        Raises ValueError for what cannot be served, and for what is no SamplingParams."""
        complete = self.checked(params)
        complete.output_kind = output_kind or complete.output_kind
        self._check_logprobs(complete)
        self._check_denoises(complete)
        self._complete_stop_tokens(complete)
        if complete.structured_outputs is not None and not complete.all_stop_token_ids:
            raise ValueError(
                "SamplingParams: structured_outputs needs a token that ends the output, and this model has none: "
                "give stop_token_ids"
            )
        if self.tokenizer is None:
            self._without_text(complete)
        if complete.bad_words_token_ids is None:  # done already where they come from another process
            words = token_ids_of_words(self.tokenizer, complete.bad_words) if complete.bad_words else []
            complete.bad_words_token_ids = [*words, *([token] for token in self._never)] or None
        complete.first_banned_token_ids = self._never_first
        return complete

    def prompt(self, prompt: Prompt, encode: Callable[[str], list[int]] | None = None) -> EngineInput:
        """encode: what makes tokens of text, if not ``encode``.

        Raises ValueError for a prompt of another form, or with parts that this version does not take."""
        encode = encode or self.encode
        if self.encoding is None:
            return self._plain(prompt, encode)
        to_encode, begin = self.encoding.split(prompt)
        if isinstance(to_encode, Mapping) and "multi_modal_data" in to_encode:
            heard = {key: value for key, value in to_encode.items() if key != "multi_modal_data" and value not in (None, "")}
            if heard:
                raise ValueError(f"an encoder_prompt with sound has nothing else; found {', '.join(map(str, heard))}")
            given, encoder_input = EngineInput([]), self.encoding.of_media(to_encode["multi_modal_data"])
        else:
            given = self._plain(to_encode, encode)
            encoder_input = self.encoding.of_tokens(given.token_ids)
        if begin is None:
            token_ids = self.encoding.begin()
        else:
            token_ids = self.encoding.started(
                self._plain(begin, lambda text: self.encode(text, add_special_tokens=False)).token_ids
            )
        return EngineInput(token_ids, given.text, given.cache_salt, encoder_input=encoder_input)

    def made_up(self, token_ids: list[int], begin: list[int]) -> EngineInput:
        """A request of which lengths matter alone. begin: of an encoder-decoder, whose encoder reads the tokens, see
        ``EncoderPrompts.made_up``. Raises ValueError for what it cannot read."""
        if self.encoding is None:
            if begin:
                raise ValueError(f"a prompt has {len(begin)} tokens for a decoder beside an encoder, and the model has no encoder")
            return EngineInput(token_ids)
        encoder_input, decoder = self.encoding.made_up(token_ids, begin)
        return EngineInput(decoder, encoder_input=encoder_input)

    def _plain(self, prompt: Prompt, encode: Callable[[str], list[int]]) -> EngineInput:
        """One of tokens of one kind."""
        if isinstance(prompt, str):
            return self.with_images(prompt, (), encode)
        if not isinstance(prompt, Mapping):
            return self._tokens_with_images(_token_ids(prompt), ())
        given: dict[str, Any] = {key: value for key, value in prompt.items() if value is not None}
        if self.images is not None and "multi_modal_data" in given:
            return EngineInput([_IMAGE_TOKEN], "", pixels=self.images.pixels(given))
        for key in given.keys() - set(_PROMPT_KEYS):
            raise ValueError(
                f"a prompt's {key!r} is not available in this version: a prompt is text or token ids, under the keys "
                + ", ".join(_PROMPT_KEYS)
            )
        text, ids, salt = given.get("prompt"), given.get("prompt_token_ids"), given.get("cache_salt")
        if text is not None and not isinstance(text, str):
            raise ValueError(f"a prompt's 'prompt' must be text; found {reprlib.repr(text)}. Token ids go under 'prompt_token_ids'")
        if salt is not None and not (isinstance(salt, str) and salt):
            raise ValueError(f"a prompt's 'cache_salt' must be text that is not empty; found {salt!r}")
        images = self._images_of(given)
        if ids is not None:
            return replace(self._tokens_with_images(_token_ids(ids), images), text=text, cache_salt=salt)
        if text is not None:
            return replace(self.with_images(text, images, encode), cache_salt=salt)
        raise ValueError(
            f"a prompt given as a dict needs 'prompt' (text) or 'prompt_token_ids'; found the keys {sorted(map(str, prompt))}"
        )

    def chat(
        self,
        messages: list[dict[str, Any]],
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **template_args: Any,
    ) -> EngineInput:
        """A conversation as a prompt; see ``ChatTemplate``. Images in it are parts of a message's content, ``{"type": "image_url",
        "image_url": {"url": "data:..."}}`` or ``{"type": "image", "image": a PIL image}``."""
        messages, images = self.chat_template.take_images(messages, chat_template)
        text = self.chat_template.render(messages, chat_template, add_generation_prompt, continue_final_message, **template_args)
        # The template writes the special tokens itself.
        return self.with_images(text, images, lambda part: self.encode(part, add_special_tokens=False))

    def with_images(self, text: str, images: Sequence[Any], encode: Callable[[str], list[int]]) -> EngineInput:
        """A text in which placeholders stand for the images. Raises ValueError for what does not fit together."""
        if self.image_prompts is None:
            return EngineInput(encode(text), text)
        self.check_text(text)
        ids, items = self.image_prompts.of_text(text, images, encode)
        return EngineInput(ids, text.replace(BREAK, ""), images=items)

    def _tokens_with_images(self, token_ids: list[int], images: Sequence[Any]) -> EngineInput:
        if self.image_prompts is None:
            return EngineInput(token_ids)
        ids, items = self.image_prompts.of_tokens(token_ids, images)
        return EngineInput(ids, images=items)

    def _images_of(self, prompt: Mapping[str, Any]) -> list[Any]:
        found = prompt.get("multi_modal_data")
        if found is None:
            return []
        if not isinstance(found, Mapping) or set(found) != {"image"}:
            raise ValueError(
                f"a prompt's 'multi_modal_data' must be {{'image': a PIL image, or a list of them}}; found {reprlib.repr(found)}"
            )
        self.check_reads_images("a prompt's 'multi_modal_data'")
        images = found["image"]
        return list(images) if isinstance(images, list | tuple) else [images]

    def check_reads_images(self, what: str) -> None:
        """Raises ValueError where images cannot be taken. what: has one."""
        check_reads_images(what, self.image_prompts, self.no_images)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Raises ValueError as ``check_text``."""
        self.check_text(text)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def check_text(self, text: str) -> None:
        """Raises ValueError without a tokenizer, and for a text that UTF-8 cannot hold."""
        if self.tokenizer is None:
            raise ValueError('this engine has no tokenizer: pass {"prompt_token_ids": [...]} instead of text')
        if not is_unicode(text):
            raise ValueError(f"a prompt must be text that UTF-8 can hold, without lone surrogates; found {reprlib.repr(text)}")

    def decode(self, token_ids: list[int]) -> str:
        """The text of tokens, special ones included. Raises ValueError without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("this engine has no tokenizer, so tokens have no text here")
        return self.tokenizer.decode(token_ids, skip_special_tokens=False)

    def _check_logprobs(self, params: SamplingParams) -> None:
        for name in ("logprobs", "prompt_logprobs"):
            if (asked := getattr(params, name)) is None:
                continue
            if self.max_logprobs is None:
                raise ValueError(
                    f"SamplingParams: {name} needs an executor with logits, and that of this engine makes tokens up: leave it out, "
                    "or set executor.kind=local"
                )
            if self.max_logprobs != -1 and not 0 <= asked <= self.max_logprobs:
                what = f"{name}={asked}" + (" (the whole vocabulary)" if asked == -1 else "")
                raise ValueError(
                    f"SamplingParams: {what} is more than the {self.max_logprobs} per token that this engine gives: ask for fewer, "
                    "or build it with a larger max_logprobs (-1 = no limit)"
                )

    def _check_denoises(self, params: SamplingParams) -> None:
        """Raises ValueError for what needs tokens to come one after the other, where they do not."""
        if not self.denoises:
            return
        for name in _IN_ORDER:
            if (asked := getattr(params, name)) not in (None, getattr(SamplingParams, name, None), [], ()):
                raise ValueError(
                    f"SamplingParams: {name}={reprlib.repr(asked)} cannot work: the model generates by block diffusion, where the "
                    "tokens before one may come after it; leave it out"
                )
        if set(params.allowed_token_ids or ()) == {self.mask_token_id}:
            raise ValueError(
                f"SamplingParams: allowed_token_ids={params.allowed_token_ids} cannot work: the mask of the model is never output; "
                "allow others, too"
            )

    def check_masks(self, token_ids: list[int]) -> None:
        """Raises ValueError for a prompt that holds the token that stands for what is not settled yet."""
        if self.mask_token_id in token_ids:
            raise ValueError(f"the prompt holds token id {self.mask_token_id}, the mask of the model, which no prompt may hold")

    def check_beams(self) -> None:
        """Raises ValueError where beam search cannot work."""
        if self.denoises:
            raise ValueError(
                "beam search cannot work: the model generates by block diffusion, which says what a token is, not what is next; "
                "use generate"
            )

    def _complete_stop_tokens(self, params: SamplingParams) -> None:
        """As in vLLM, ends of sequence besides the tokenizer's own are stop tokens, which are told as ``stop_reason``; and
        the own is no reason even where it is one of them; ``min_tokens`` holds back every end, even those that
        ``ignore_eos`` samples like others."""
        eos, given = self.eos_token_ids, params.stop_token_ids or []
        own = eos if len(eos) == 1 else {getattr(self.tokenizer, "eos_token_id", None)}
        params.all_stop_token_ids = sorted({*given, *eos})
        if not params.ignore_eos:
            params.stop_token_ids = sorted({*given, *eos} - own)

    def _without_text(self, params: SamplingParams) -> None:
        for name in ("stop", "bad_words", "structured_outputs"):
            if getattr(params, name):
                raise ValueError(f"SamplingParams: {name} needs a tokenizer, and this engine has none; use token ids instead")
        params.detokenize = False


def request_seed(seed: int, index: int) -> int:
    """Of the request number ``index`` that brings none. seed: of the configuration."""
    digest = blake2b(f"{seed}:{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def check_priority(priority: object) -> int:
    """A request's priority as an int. Raises ValueError for what is not an integer: it could not be ordered among the others."""
    if not is_integer(priority):
        raise ValueError(f"priority={priority!r} cannot work: it must be an integer (smaller goes first)")
    return int(priority)


def check_tokens(prompt: list[int], params: SamplingParams, vocab_size: int, placeholder: int | None = None) -> None:
    """Raises ValueError for token ids that the model has not. Bad words with such are left out: a tokenizer may know tokens that
    the model has not, and never generates. placeholder: of images, where it has no logit."""
    check_prompt_tokens(prompt, vocab_size, placeholder)
    for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
        if wrong := [token for token in getattr(params, name) or () if token >= vocab_size]:
            raise ValueError(f"SamplingParams: {name} holds token id {wrong[0]}, but the model has ids 0 to {vocab_size - 1}")
    for name in ("logprobs", "prompt_logprobs"):
        if (asked := getattr(params, name) or 0) > vocab_size:
            raise ValueError(f"SamplingParams: {name}={asked}, but the model has {vocab_size} tokens; -1 asks for all of them")
    if params.bad_words_token_ids:
        params.bad_words_token_ids = [word for word in params.bad_words_token_ids if max(word) < vocab_size]
    params.first_banned_token_ids = [token for token in params.first_banned_token_ids if token < vocab_size]


def check_prompt_tokens(prompt: list[int], vocab_size: int, placeholder: int | None = None) -> None:
    """Raises ValueError for a prompt that is empty, or holds token ids that the model has not."""
    if not prompt:
        raise ValueError("the prompt is empty: a request needs at least one token")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        wrong = next((token for token in prompt if not 0 <= token < vocab_size and token != placeholder), None)
        if wrong is None:
            return
        raise ValueError(f"the prompt holds token id {wrong}, but the model's ids are 0 to {vocab_size - 1}")


def follower_params(params: SamplingParams, index: int) -> SamplingParams:
    """Of completion ``index``: its own seed; the prompt's log-probabilities come from completion 0."""
    own = copy.copy(params)
    assert params.seed is not None
    own.seed = params.seed + index
    if params.prompt_logprobs is not None:
        own.prompt_logprobs, own.skip_reading_prefix_cache = None, False
    return own


def _suppressed(generation: Mapping[str, Any], name: str) -> list[int]:
    """Tokens that a generation config lists. Numbers below 0 stand for none."""
    found = generation.get(name) or []
    if not isinstance(found, list) or not all(type(token) is int for token in found):
        raise ValueError(f"the model's generation_config.json has {name}={reprlib.repr(found)}, expected a list of token ids")
    return [token for token in found if token >= 0]


def _token_ids(ids: Any) -> list[int]:
    try:
        listed = None if isinstance(ids, str | bytes | bytearray | memoryview | Mapping) else list(ids)
    except TypeError:
        listed = None
    if listed is None:
        raise ValueError(f"a prompt must be text, a dict, or a list of token ids; found {reprlib.repr(ids)}")
    if set(map(type, listed)) <= {int}:
        return listed
    for token in listed:
        if not is_integer(token):
            raise ValueError(f"a prompt of token ids must be a list of integers; found {token!r} ({type(token).__name__}) in it")
    return [int(token) for token in listed]
