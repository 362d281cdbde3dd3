"""Level 2, pure: what somebody may have meant."""

from __future__ import annotations

from collections.abc import Sequence


def nearest(word: str, known: Sequence[str]) -> str:
    """``did you mean --view?``, or nothing where no known word is near. What begins as an option does is near."""
    import difflib  # 4 ms that only a mistake should cost

    begun = [name for name in known if word.startswith("--") and len(word) > 3 and name.startswith(word)]
    close = sorted(begun, key=len) or difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else ""
