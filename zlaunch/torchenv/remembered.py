"""Level 3: libraries that ask for their rank when they are imported, and remember the answer.

In the fork template there is no rank yet, and every rank would take itself for the first one: Lightning would say on
all ranks what one is to say. What these libraries remember, and where, is known: it is set in each rank.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

_ASKING = (
    "lightning.fabric.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
    "torchmetrics.utilities.prints",
)
"""The modules that ask, for what is set below."""
_REMEMBERED = {"lightning_utilities.core.rank_zero": "RANK", "torchmetrics.utilities.prints": "LOCAL_RANK"}
"""Where the answer is: the attribute ``rank`` of the function ``rank_zero_only`` of these."""
_LOOK_UP = ("os", "collections.abc", "_collections_abc", __name__)
"""What lies between somebody who asks for a variable and the look-up itself."""


def is_asked_by_one() -> bool:
    """Whether the variable that is being looked up now is asked for by one of them."""
    frame = sys._getframe(1).f_back  # who calls this is the look-up
    while frame is not None and frame.f_globals.get("__name__") in _LOOK_UP:
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") in _ASKING


def tell_rank(env: Mapping[str, str]) -> None:
    """Set what those that have been imported would have found in a rank with this environment."""
    for module, variable in _REMEMBERED.items():
        function = getattr(sys.modules.get(module), "rank_zero_only", None)
        if function is not None and hasattr(function, "rank"):
            function.rank = int(env[variable])
