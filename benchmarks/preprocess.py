"""What text to shards costs, beside what its tokenizer and its wikitext parser cost alone.

    python benchmarks/preprocess.py --text SPEC... --dump SPEC... --tokenizer DIR --json FILE

1. 30 MB and 240 MB of text, as plain files of a document a line.
2. Three rounds of: the ceiling, which is `encode_batch_fast` of the tokenizers library on the 240 MB, in memory, on
   one core; `build_shards.py` on both files with one worker, pinned to one core, and on the larger with two on two:
   megabytes of text a second from its start to its end, and the largest memory of a process.
3. The dump: mwparserfromhell's tokenizer alone on the articles' wikitext, its whole parser, and our reader, which
   unpacks the dump, reads its XML, tokenizes wikitext and makes plain text of it.
4. Table with the medians of the rounds, also of the ratios within each, and FILE. Nothing else should run on the
   machine meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

os.environ["RAYON_NUM_THREADS"] = "1"

from pipeline.environment import measured
from pipeline.errors import EXIT_DONE, DataError, run_entry_point
from pipeline.files import write_atomically
from pipeline.records import markdown_table
from preprocessing.readers.compressed import open_text
from preprocessing.readers.specs import expand_specs, read_documents
from preprocessing.tokenizing.tokenizer import load_fast

ROOT = Path(__file__).resolve().parent.parent
SMALL, LARGE = 30, 240
"""Megabytes of text."""
CEILING = "encode_batch_fast alone"
ONE_WORKER = f"{LARGE} MB, 1 worker"
BUILDS = {f"{SMALL} MB, 1 worker": (SMALL, 1), ONE_WORKER: (LARGE, 1), f"{LARGE} MB, 2 workers": (LARGE, 2)}
BATCH = 1000
ROUNDS = 3
MEASURE_PEAK = """
import resource, subprocess, sys
code = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""
"""Runs a command and writes the largest resident memory of any of its processes, in KiB. In a process of its own: a
process begins with the resident memory of the one that started it as its largest so far."""
CORES = sorted(os.sched_getaffinity(0))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", required=True, metavar="SPEC", help=f"{LARGE} MB of text or more")
    parser.add_argument("--dump", nargs="+", default=[], metavar="SPEC", help="mediawiki:PATH; without it no dump")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="as for build_shards.py")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="where the results go")
    return parser.parse_args()


def write_text(specs: list[str], folder: Path) -> dict[int, Path]:
    """The first `SMALL` and `LARGE` megabytes of the documents, one a line."""
    files = {size: folder / f"{size}.txt" for size in (SMALL, LARGE)}
    written = dict.fromkeys(files, 0)
    streams = {size: open(path, "wb") for size, path in files.items()}  # noqa: SIM115
    for document in read_documents(specs):
        line = " ".join(document.text.split()).encode() + b"\n"
        for size, stream in streams.items():
            if written[size] < size * 1e6:
                stream.write(line)
                written[size] += len(line)
    for stream in streams.values():
        stream.close()
    if written[LARGE] < LARGE * 1e6:
        raise DataError(f"--text has {written[LARGE] / 1e6:.0f} MB of text, and {LARGE} MB are wanted")
    return files


def rate_alone(work: Callable[[], object], size: int) -> float:
    """Megabytes a second of `work` on `size` bytes on one core, the best of the rounds: nothing else's noise."""
    return max(rate_once(work, size) for _ in range(ROUNDS))


def rate_once(work: Callable[[], object], size: int) -> float:
    began = time.perf_counter()
    work()
    return size / 1e6 / (time.perf_counter() - began)


def tokenizer_ceiling(tokenizer: Path, text: Path) -> float:
    """What the library alone does with the text in memory."""
    fast = load_fast(tokenizer)
    lines = text.read_text(encoding="utf-8").split("\n")
    batches = [lines[start : start + BATCH] for start in range(0, len(lines), BATCH)]

    def encode() -> None:
        for batch in batches:
            fast.encode_batch_fast(batch, add_special_tokens=False)

    return rate_once(encode, text.stat().st_size)


def build(text: Path, tokenizer: Path, workers: int) -> dict[str, float]:
    """Rate and memory of a whole build on as many cores as workers."""
    with tempfile.TemporaryDirectory() as folder:
        peak = Path(folder) / "peak"
        command = [sys.executable, "-c", MEASURE_PEAK, str(peak)]
        command += [sys.executable, str(ROOT / "preprocessing" / "build_shards.py"), "--input", f"lines:{text}"]
        command += ["--tokenizer", str(tokenizer), "--output", f"{folder}/shards", "--workers", str(workers)]
        os.sched_setaffinity(0, set(CORES[:workers]))
        began = time.perf_counter()
        process = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        os.sched_setaffinity(0, {CORES[0]})
        if process.returncode:
            raise DataError(f"build_shards.py ended with code {process.returncode}: {process.stderr}")
        return {"mb_per_s": text.stat().st_size / 1e6 / seconds, "peak_mb": int(peak.read_text()) * 1024 / 1e6}


def run_round(files: dict[int, Path], tokenizer: Path) -> dict[str, dict[str, float]]:
    """Everything once, one after the other, so that what slows the machine down for minutes slows all of it."""
    figures = {CEILING: {"mb_per_s": tokenizer_ceiling(tokenizer, files[LARGE])}}
    for name, (size, workers) in BUILDS.items():
        figures[name] = build(files[size], tokenizer, workers)
    ceiling, one = figures[CEILING]["mb_per_s"], figures[ONE_WORKER]["mb_per_s"]
    for row in figures.values():
        row |= {"of_ceiling": row["mb_per_s"] / ceiling, "of_one_worker": row["mb_per_s"] / one}
    return figures


def medians(rounds: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Of every figure over the rounds; ratios are those within a round."""
    return {
        name: {key: statistics.median(figures[name][key] for figures in rounds) for key in rounds[0][name]}
        for name in rounds[0]
    }


def wikitexts(spec: str) -> Iterator[str]:
    """Source of the articles of a dump, read in the plainest way."""
    for source in expand_specs([spec]):
        with open_text(source.path) as stream:
            pages = stream.read().split(b"<page>")[1:]
        for page in pages:
            element = ElementTree.fromstring(b"<page>" + page.partition(b"</page>")[0] + b"</page>")
            text = element.findtext("revision/text") or ""
            if element.findtext("ns") == "0" and element.find("redirect") is None:
                yield text


def measure_dump(spec: str) -> dict[str, Any]:
    """The rates of a dump, in megabytes of the articles' wikitext."""
    import mwparserfromhell
    from mwparserfromhell.parser import CTokenizer

    sources = list(wikitexts(spec))
    size = sum(len(source.encode()) for source in sources)
    parser = CTokenizer()
    return {
        "articles": len(sources),
        "wikitext_mb": size / 1e6,
        "tokenizer_alone_mb_per_s": rate_alone(lambda: [parser.tokenize(source) for source in sources], size),
        "parser_alone_mb_per_s": rate_alone(lambda: [mwparserfromhell.parse(source) for source in sources], size),
        "reader_mb_per_s": rate_alone(lambda: list(read_documents([spec])), size),
    }


def main() -> int:
    arguments = parse_arguments()
    results = measured(not_measured="more than two workers, several machines, other tokenizers")
    everywhere = os.sched_getaffinity(0)
    with tempfile.TemporaryDirectory() as folder:
        files = write_text(arguments.text, Path(folder))
        saved = Path(folder) / "tokenizer"
        saved.mkdir()
        from preprocessing.tokenizing.tokenizer import save_tokenizer

        save_tokenizer(arguments.tokenizer, saved)
        os.sched_setaffinity(0, {CORES[0]})
        rounds = [run_round(files, saved) for _ in range(ROUNDS)]
        results |= {"rounds": rounds, "rows": medians(rounds)}
        results["dumps"] = {Path(spec).name: measure_dump(spec) for spec in arguments.dump}
        os.sched_setaffinity(0, everywhere)
    rows = []
    for name, row in results["rows"].items():
        spread = [figures[name]["mb_per_s"] for figures in rounds]
        cells = [f"{row['mb_per_s']:.2f}", f"{min(spread):.2f} to {max(spread):.2f}"]
        cells += [f"{row['of_ceiling']:.2f}", f"{row['of_one_worker']:.2f}"]
        rows.append([name, *cells, f"{row['peak_mb']:.0f}" if "peak_mb" in row else ""])
    print(
        markdown_table(["", "MB/s", "least and most", "of the ceiling", "of one worker", "peak MB of a process"], rows)
    )
    for name, dump in results["dumps"].items():
        size = f"{dump['articles']:,} articles, {dump['wikitext_mb']:.1f} MB of wikitext"
        alone = f"tokenizer {dump['tokenizer_alone_mb_per_s']:.2f}, parser {dump['parser_alone_mb_per_s']:.2f}"
        print(f"{name}: {size}; MB/s: mwparserfromhell's {alone}, our reader {dump['reader_mb_per_s']:.2f}")
    write_atomically(arguments.json, (json.dumps(results, indent=1) + "\n").encode())
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
