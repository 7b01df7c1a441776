"""placeholder"""

from typing import Any


def render(summary: dict[str, Any]) -> str:
    """."""
    return str(summary)
