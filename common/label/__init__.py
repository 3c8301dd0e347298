"""MONAI Label for the dental segmenter. `monailabel` is imported only here; nothing else in `common` needs it.

MONAI Label imports two functions of torchvision, for debug pictures alone. Where torchvision cannot be imported, as
beside a CPU build of torch, empty modules stand in for it before any module of this package imports MONAI Label.
"""

import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

if find_spec("monailabel"):
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        stand_in: Any = ModuleType("torchvision")
        stand_in.utils = ModuleType("torchvision.utils")
        stand_in.utils.make_grid = stand_in.utils.save_image = None
        sys.modules |= {"torchvision": stand_in, "torchvision.utils": stand_in.utils}
