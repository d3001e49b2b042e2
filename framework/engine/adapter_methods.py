"""What an engine's users do with adapters."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..lora_request import LoRARequest, check_lora_request
from .adapter_slots import Adapter
from .adapters import Adapters

WAIT_S = 0.002
"""Between two looks whether an adapter is read."""


class AdapterMethods:
    """Of an engine. All raise ValueError where it takes no adapters."""

    _adapters: Adapters | None

    def start_lora(self, request: LoRARequest) -> Callable[[], bool]:
        """Begins to read an adapter. Returns what tells whether that is done, which raises ValueError for an adapter that cannot be
        served. Raises it itself for one that cannot be read now."""
        check_lora_request(request, self._adapters is not None)
        adapters = self._enabled()
        adapter = adapters.load(request)
        return lambda: adapters.is_loaded(adapter)

    def add_lora(self, request: LoRARequest) -> bool:
        """Reads an adapter before a request asks for it. Raises ValueError for one that cannot be served."""
        is_done = self.start_lora(request)
        while not is_done():
            time.sleep(WAIT_S)
        return True

    def remove_lora(self, lora_id: int) -> bool:
        """Forgets an adapter; False if it is not known. Raises ValueError while requests use it."""
        return self._enabled().remove(lora_id)

    def pin_lora(self, lora_id: int) -> bool:
        """Keeps an adapter that is loaded where it is, whatever others need. Raises ValueError if it cannot be."""
        return self._enabled().pin(lora_id)

    def list_loras(self) -> set[int]:
        """Ids of the adapters that the host holds."""
        return self._enabled().ids()

    def _find_adapter(self, request: LoRARequest | None) -> Adapter | None:
        check_lora_request(request, self._adapters is not None)
        return None if request is None else self._enabled().find(request)

    def _enabled(self) -> Adapters:
        if self._adapters is None:
            raise ValueError("this engine takes no adapters: build it with enable_lora=True (lora.enabled)")
        return self._adapters
