"""Train a tokenizer on text and save it as a directory that `AutoTokenizer` loads."""

import argparse
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import temporary_name, writing
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int
from preprocessing.inputs import expand_specs, read_documents


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="train_tokenizer.py", description="Train a tokenizer on text.")
    parser.add_argument("--kind", choices=["wordpiece"], default="wordpiece", help="algorithm (default: %(default)s)")
    spec_help = "FORMAT:PATH, PATH may be a glob; formats: text (a document per file), lines, wikiextractor"
    parser.add_argument("--input", action="extend", nargs="+", required=True, metavar="SPEC", help=spec_help)
    parser.add_argument("--vocab-size", type=positive_int, required=True, metavar="N", help="tokens, special ones too")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="new directory")
    parser.add_argument("--cased", action="store_true", help="keep upper case and accents (default: drop them)")
    add_launcher_arguments(parser)
    return parser.parse_args()


def main() -> int:
    """Entry point; returns the exit code."""
    args = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"{args.output} exists and is not an empty directory; choose another output")
    expand_specs(args.input)  # a mistake in a SPEC is said before the slow imports
    from preprocessing.wordpiece import train_wordpiece

    def texts() -> Iterator[str]:
        return (document.text for document in read_documents(args.input))

    vocabulary = train_wordpiece(texts, args.vocab_size, args.cased)
    save_whole(vocabulary, args.output, args.cased)
    print(f"{args.output}: WordPiece vocabulary of {len(vocabulary):,} tokens")
    if len(vocabulary) < args.vocab_size:
        print(f"note: {args.vocab_size:,} were asked for, but the text gives no more; give more text for more tokens")
    return EXIT_DONE


def save_whole(vocabulary: list[str], output: Path, cased: bool) -> None:
    """Save the tokenizer under a temporary name and rename it."""
    from preprocessing.tokenizers_io import save_directory, wordpiece_tokenizer

    temporary = temporary_name(output)
    with writing(output):
        temporary.mkdir(parents=True)
        try:
            save_directory(wordpiece_tokenizer(vocabulary, cased), temporary)
            os.replace(temporary, output)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    run_entry_point(main)
