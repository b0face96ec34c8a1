"""Train a tokenizer on a sample of text and save it as a directory that `AutoTokenizer` loads."""

import argparse
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int
from preprocessing.readers.specs import SPEC_HELP, expand_specs, read_documents, sample_texts

SAMPLE_BYTES = 50_000_000
"""Enough for 30,000 tokens of English. WordPiece and BPE take some 20 s of a core for it and unigram a minute."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="train_tokenizer.py", description="Train a tokenizer on text.")
    kinds = ["wordpiece", "unigram", "bpe"]
    kind_help = "WordPiece, or SentencePiece's unigram or BPE (default: %(default)s)"
    parser.add_argument("--kind", choices=kinds, default="wordpiece", help=kind_help)
    parser.add_argument("--input", action="extend", nargs="+", required=True, metavar="SPEC", help=SPEC_HELP)
    parser.add_argument("--vocab-size", type=positive_int, required=True, metavar="N", help="tokens, special ones too")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new directory")
    parser.add_argument("--cased", action="store_true", help="keep upper case (default: drop it)")
    sample_help = "most text to train on, spread evenly over all of the input and held in memory (default: %(default)s)"
    parser.add_argument("--sample-bytes", type=positive_int, default=SAMPLE_BYTES, metavar="N", help=sample_help)
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Entry point; returns the exit code."""
    arguments = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    if arguments.output.exists() and (not arguments.output.is_dir() or any(arguments.output.iterdir())):
        raise UserError(f"{arguments.output} exists and is not an empty directory; choose another output")
    expand_specs(arguments.input)  # a mistake in a SPEC is said before the slow imports
    texts = sample_texts((document.text for document in read_documents(arguments.input)), arguments.sample_bytes)
    from preprocessing.tokenizing.training import train_and_save

    size = train_and_save(texts, arguments.kind, arguments.vocab_size, arguments.cased, arguments.output)
    print(f"{arguments.output}: {arguments.kind} vocabulary of {size:,} tokens")
    if size < arguments.vocab_size:
        wanted = f"{arguments.vocab_size:,} were asked for"
        print(f"note: {wanted}, but the text gives no more; give more text for more tokens")
    return EXIT_DONE


if __name__ == "__main__":
    run_entry_point(main)
