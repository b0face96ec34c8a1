"""What task attention holds against the teacher, and under which names in `results.json` it stands."""

from collections.abc import Collection

STUDENT, TEACHER, SHUFFLED, SCRATCH, SLICE = "student", "teacher", "shuffled", "scratch", "slice"
"""The model itself, the teacher loaded again, the model's heads in a wrong order, and what `--controls` names."""
MAIN_METRICS = {
    "js": "JS",
    "js_no_special": "JS without [CLS], [SEP]",
    "relation_queries": "relation of queries",
    "relation_keys": "of keys",
    "relation_values": "of values",
}
"""What tables show of it, with their headings; in nats, and 0 for the same attention."""


def by_text(names: Collection[str]) -> dict[str, dict[str, str]]:
    """`attention TEXT` -> condition -> its name in `results.json`, the student first; other names are passed over."""
    found: dict[str, dict[str, str]] = {}
    for name in (name for name in names if name.startswith("attention ")):
        text, _, condition = name.rpartition(" ")
        is_control = condition in (TEACHER, SHUFFLED, SCRATCH, SLICE) and text in names
        found.setdefault(text if is_control else name, {})[condition if is_control else STUDENT] = name
    return {text: {STUDENT: text, **conditions} for text, conditions in found.items()}
