"""A stand-in for torchvision where it cannot be imported, as beside a CPU build of torch."""

from __future__ import annotations

import sys
import types
from typing import Any


def install() -> bool:
    """Put empty modules in torchvision's place if it does not import; returns whether that was needed.

    MONAI Label imports `make_grid` and `save_image`, which it uses for debug pictures alone.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        torchvision_module: Any = types.ModuleType("torchvision")
        utils: Any = types.ModuleType("torchvision.utils")
        utils.make_grid = utils.save_image = None
        torchvision_module.utils = utils
        sys.modules.update({"torchvision": torchvision_module, "torchvision.utils": utils})
        return True
    return False
