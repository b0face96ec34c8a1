"""An even sample of a text of unknown length, in memory of known size."""

from collections.abc import Iterable


def sample_texts(texts: Iterable[str], limit: int) -> list[str]:
    """Return every n-th text, in order, with n the smallest power of two that keeps their UTF-8 within `limit` bytes.

    Reads all of `texts` and never holds more than `limit` bytes and one text. A text longer than `limit` is cut.
    """
    kept, step, size = list[tuple[str, int]](), 1, 0
    for index, text in enumerate(texts):
        if index % step:
            continue
        raw = text.encode()
        if len(raw) > limit:
            raw = raw[:limit]
            text = raw.decode(errors="ignore")
        kept.append((text, len(raw)))
        size += len(raw)
        while size > limit:
            kept, step = kept[::2], 2 * step
            size = sum(length for _, length in kept)
    return [text for text, _ in kept]
