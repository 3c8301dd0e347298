"""What `monailabel start_server --app scripts/monailabel_app` loads; scripts/serve_label.sh does that."""

import sys
from pathlib import Path

# This checkout's `common`, not some other package of that name.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from common.label.app import RadiographApp

__all__ = ["RadiographApp"]
