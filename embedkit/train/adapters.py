"""Which weights of a model are trained: all, or where its folder holds an adapter (LoRA or its kin, by peft) the adapter's alone."""

from __future__ import annotations

import logging
from typing import Any

from embedkit.errors import ModelError

logger = logging.getLogger(__name__)


def with_trained_weights(model: Any, name: str) -> Any:
    """The model, an adapter of it thawed: it is opened frozen. Raises ModelError where there is nothing to train."""
    if any(getattr(module, "_hf_peft_config_loaded", False) for module in model.modules()):
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(module.active_adapters)
        counts = [
            sum(one.numel() for one in model.parameters() if one.requires_grad or whole) for whole in (False, True)
        ]
        logger.info("%s is an adapter, which alone is trained: %d of %d weights.", name, *counts)
    if not any(weight.requires_grad for weight in model.parameters()):
        raise ModelError(f"{name} has no weights that can be trained; give another model.")
    return model
