"""Which low-rank adapter (Hu et al., arXiv 2106.09685) a request is served with, and what an engine holds of adapters."""

from __future__ import annotations

from dataclasses import dataclass

from .config_checks import check_types, require

LORA_DTYPES = ("auto", "float32", "float16", "bfloat16")
MAX_LORA_RANK = 512


@dataclass(frozen=True)
class LoRARequest:
    """An adapter, as peft's ``save_pretrained`` writes it. Requests with the same one share its weights.

    lora_name     by which it is told in errors and metrics
    lora_int_id   by which engines know it: a positive number, another one for each adapter
    lora_path     folder with adapter_config.json and adapter_model.safetensors
    load_inplace  reads the folder again, although an adapter with this id is loaded; requests that it serves go on with the weights
                  that they began with

    Raises ValueError for values that cannot work.
    """

    lora_name: str
    lora_int_id: int
    lora_path: str
    load_inplace: bool = False

    def __post_init__(self) -> None:
        check_types(self, "LoRARequest.")
        require(self.lora_name, "LoRARequest.lora_name", self.lora_name, "a name that is not empty")
        require(self.lora_int_id > 0, "LoRARequest.lora_int_id", self.lora_int_id, "a positive number (0 stands for no adapter)")
        require(self.lora_path, "LoRARequest.lora_path", self.lora_path, "the folder of an adapter")


@dataclass
class LoraConfig:
    """Adapters: what is kept of them, and where.

    enabled         requests may bring adapters
    max_loras       slots on the device: most adapters in one step
    max_rank        largest rank of an adapter; each slot has room for it
    max_cpu_loras   most adapters in the host's memory; None = max_loras
    dtype           of adapters on the device: auto (the model's), float32, float16, bfloat16
    target_modules  ends of module names (q_proj, mlp.down_proj) that adapters may adapt, the others take no memory for it; None =
                    all linear layers outside experts, the embedding and the logits
    """

    enabled: bool = False
    max_loras: int = 1
    max_rank: int = 16
    max_cpu_loras: int | None = None
    dtype: str = "auto"
    target_modules: list[str] | None = None

    @property
    def num_host_loras(self) -> int:
        """``max_cpu_loras``, or its default."""
        return self.max_loras if self.max_cpu_loras is None else self.max_cpu_loras

    def validate(self) -> None:
        """Raises ValueError as ``EngineConfig.validate`` does."""
        require(0 < self.max_loras <= 1 << 20, "lora.max_loras", self.max_loras, "from 1 to 2^20")
        require(1 <= self.max_rank <= MAX_LORA_RANK, "lora.max_rank", self.max_rank, f"from 1 to {MAX_LORA_RANK}")
        least = f"at least {self.max_loras} as lora.max_loras, or null (as many)"
        require(self.num_host_loras >= self.max_loras, "lora.max_cpu_loras", self.max_cpu_loras, least)
        require(self.dtype in LORA_DTYPES, "lora.dtype", self.dtype, "one of " + ", ".join(LORA_DTYPES))
        expected = "names that are not empty, at least one, or null (all)"
        require(
            self.target_modules is None or (self.target_modules and all(self.target_modules)),
            "lora.target_modules",
            self.target_modules,
            expected,
        )
        if not self.enabled:
            for name, default in vars(LoraConfig()).items():
                expected = f"{default} (with lora.enabled=false nobody reads it)"
                require(getattr(self, name) == default, f"lora.{name}", getattr(self, name), expected)


def check_lora_request(request: LoRARequest | None, enabled: bool) -> None:
    """Raises ValueError for what is no LoRARequest, and for one where adapters are not enabled."""
    if request is None:
        return
    if not isinstance(request, LoRARequest):
        raise ValueError(f"lora_request must be a LoRARequest, as LoRARequest('name', 1, 'folder'); found {request!r}")
    if not enabled:
        raise ValueError(
            f"the request asks for the adapter {request.lora_name!r}, and this engine takes none: build it with enable_lora=True "
            "(lora.enabled)"
        )
