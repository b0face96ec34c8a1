"""What the documents say of an H200 is what its results files say."""

import re
from statistics import median

from tests.support.documents import RESULTS, counted, document, results, table

RECORDED = ("narrowed", "student")
PHASES = ("full width, scored", "closing", "narrowed")
"""Of a trainer's run on a GPU."""


def test_the_tables_of_steps_and_of_the_trainer_on_a_gpu():
    measured = results("2026-11-28_gpu_h200")["sections"]
    sections = [measured[name]["rows"] for name in ("steps", "steps_double")]
    shown = table("docs/cost.md", "on an H200")
    assert {name.replace(", ", "_") for name in shown} == sections[0].keys()
    for name, cells in shown.items():
        expected = []
        for rows in sections:
            row = rows[name.replace(", ", "_")]
            expected += [f"{row['tokens_per_s']:,.0f}", f"{row['times_student_step']:.2f}"]
            expected.append(counted(rows, name.replace(", ", "_")))
        assert cells == expected, name
    runs = [*measured["trainer"]["runs"].values()]
    runs += results("2026-11-28_gpu_h200_compiled")["sections"]["trainer_compiled"]["runs"].values()
    shown = table("docs/cost.md", "the trainer on an H200, tokens/s")
    assert list(shown.values()) == [[f"{run[phase]['tokens_per_s']:,.0f}" for phase in PHASES] for run in runs]


def test_the_sentences_on_a_gpu_say_what_was_measured():
    measured, compiled = (results(f"2026-11-28_gpu_h200{name}")["sections"] for name in ("", "_compiled"))
    before = results("2026-11-27_step_time_192_h200")["rows"]["narrowed"]
    steps = [measured[name] for name in ("steps", "steps_double")]
    recorded = [section["narrowed_over_student_recorded"] for section in (*steps, compiled["compiled"])]
    said = ["{:.2f} ({:.2f} to {:.2f})".format(found["median"], *found["range"]) for found in recorded]
    narrowed = [section["rows"]["narrowed"] for section in steps]
    fast, times = ([row[key] for row in narrowed] for key in ("times_faster_than_chained", "times_student_step"))
    profiled, eager = (measured["profile"]["rows"][f"narrowed{name}"] for name in ("_recorded", ""))
    alone = 61_440 / steps[0]["rows"]["narrowed_recorded"]["tokens_per_s"]
    ours, theirs = (compiled["compiled"]["rows"][f"{name}_compiled_recorded"]["seconds"] for name in RECORDED)
    pairs = [one / other for one, other in zip(ours, theirs, strict=True)]
    slow, quick = (compiled["trainer_compiled"]["runs"][f"micro_batch_960{name}"] for name in ("", "_compiled"))
    gains = [quick[phase]["tokens_per_s"] / slow[phase]["tokens_per_s"] for phase in PHASES]
    rates = {name: row["tokens_per_s"] / 1e6 for name, row in compiled["compiled"]["rows"].items()}
    by_size = [measured["trainer"]["runs"][f"micro_batch_{size}"]["narrowed"]["tokens_per_s"] for size in (480, 960)]
    runs = [*measured["trainer"]["runs"].values(), slow, quick]
    waiting = max(run[phase]["waiting_for_data"] for run in runs for phase in PHASES)
    ends = ("full width, scored", "narrowed")
    utilised = [f"{100 * quick[phase]['model_flop_utilisation']:.0f} %" for phase in ends]
    tokens = [run[phase]["tokens_per_s"] for run in (slow, quick) for phase in ends]
    full, all_steps, batch = 8_500, 400_000, 960 * 128
    hours = [
        f"{(full / at_first + (all_steps - full) / later) * batch / 3600:.1f}"
        for at_first, later in zip(tokens[::2], tokens[1::2], strict=True)
    ]
    took = [section["took_seconds"] for section in (compiled["trainer_compiled"], measured["trainer"])]
    kernels = (RESULTS / "2026-11-28_gpu_h200_profile.txt").read_text().split("narrowed_recorded: ")[1]
    largest = ("GammaBetaBackward", "reduce_kernel<128, 4", "sdpa_sm90_flash_bprop")
    lines = [next(line for line in kernels.splitlines() if name in line) for name in largest]
    shares = [f"{float(re.findall(r'([0-9.]+)%', line)[2]):.0f} %" for line in lines]
    busy = float(re.search(r"Self CUDA time total: ([\d.]+)ms", kernels)[1])
    torchs = compiled["loss"]["cases"]["bf16, loss scale 2^0"]["torch's"]
    shown = [
        f"equal bit for bit in {len(measured['capture']['cases'])} cases",
        f"biases ({shares[0]}), sums such as those of biases' gradients ({shares[1]}), and attention's backward pass",
        f"backward pass ({shares[2]})",
        f"is off by {100 * min(torchs):.1f} % as well",
        f"takes {times[0]:.2f} times the student's step** with 61,440 tokens, and {times[1]:.2f} times",
        f"It is {fast[0]:.1f} and {fast[1]:.1f} times as fast as chained",
        f"took {before['times_student_step']:.1f} times the student's step, and did {before['tokens_per_s']:,.0f}",
        f"takes {said[0]} times the student's step with 61,440 tokens; a second run gave {said[2]}",
        f"With 122,880 it takes {said[1]} times",
        f"take {profiled['step_ms']:.1f} ms each, of which the kernels run for {busy:.1f}",
        f"and so has {1e3 * alone:.1f} ms",
        f"after {profiled['host_ms']:.1f} ms instead of {eager['host_ms']:.1f}, and the device takes",
        f"{gains[0]:.2f} times as fast at full width, {gains[1]:.2f} while gates close, {gains[2]:.2f} narrowed",
        f"together took {took[0]:.0f} s, and the two of the other file, not compiled, {took[1]:.0f} s",
        f"{rates['student_recorded']:.2f} to {rates['student_compiled_recorded']:.2f} million",
        f"from {rates['narrowed_recorded']:.2f} to {rates['narrowed_compiled_recorded']:.2f} narrowed",
        f"narrowed takes {median(pairs):.2f} ({min(pairs):.2f} to {max(pairs):.2f}) times the student's",
        f"960 windows** are {by_size[1] / by_size[0]:.2f} times as fast as of 480",
        f"at most {100 * waiting:.1f} % of the time",
        f"{utilised[0]} at full width and {utilised[1]} narrowed",
        f"train for {hours[1]} hours with `fast_bert_base_to_11m`, compiled, and for {hours[0]} as it is",
    ]
    assert [words for words in shown if words not in document("docs/cost.md")] == []
    assert f"factors are {fast[1]:.1f} and {times[1]:.2f}" in document("README.md")
    width = "{:.2f} million tokens a second at full width and {:.1f} million narrowed, and {:.2f} and {:.1f} million"
    assert width.format(*(rate / 1e6 for rate in tokens)) in document("README.md")
    assert f"{min(gains):.2f} to {max(gains):.2f} times as fast" in document("docs/decisions.md")
    assert f"{hours[0]} hours on one H200" in document("docs/cluster.md")
