"""Train a tokenizer on a sample of text and save it as a directory that `AutoTokenizer` loads."""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from pipeline.errors import EXIT_DONE, UserError, run_entry_point
from pipeline.files import temporary_name, writing
from pipeline.launch import add_launcher_arguments, only_rank_zero, positive_int
from preprocessing.readers.specs import SPEC_HELP, expand_specs, read_documents, sample_texts

# Enough for 30,000 tokens of English. WordPiece and BPE take some 20 s of a core for it and unigram a minute.
SAMPLE_BYTES = 50_000_000


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
    args = parse_arguments()
    if not only_rank_zero():
        return EXIT_DONE
    if args.output.exists() and (not args.output.is_dir() or any(args.output.iterdir())):
        raise UserError(f"{args.output} exists and is not an empty directory; choose another output")
    expand_specs(args.input)  # a mistake in a SPEC is said before the slow imports
    texts = sample_texts((document.text for document in read_documents(args.input)), args.sample_bytes)
    size = train_and_save(texts, args.kind, args.vocab_size, args.cased, args.output)
    print(f"{args.output}: {args.kind} vocabulary of {size:,} tokens")
    if size < args.vocab_size:
        print(f"note: {args.vocab_size:,} were asked for, but the text gives no more; give more text for more tokens")
    return EXIT_DONE


def train_and_save(texts: list[str], kind: str, vocab_size: int, cased: bool, output: Path) -> int:
    """Train, make the tokenizer directory appear whole, and return the number of its tokens."""
    from preprocessing.tokenizing.sentencepiece_training import train_sentencepiece
    from preprocessing.tokenizing.tokenizer import load_encoder, save_tokenizer
    from preprocessing.tokenizing.wordpiece_training import train_wordpiece

    with tempfile.TemporaryDirectory() as folder:
        if kind == "wordpiece":
            trained = Path(folder) / "vocab.txt"
            content = "".join(f"{token}\n" for token in train_wordpiece(texts, vocab_size, cased)).encode()
        else:
            trained = Path(folder) / "trained.model"
            content = train_sentencepiece(texts, kind, vocab_size, cased)
        trained.write_bytes(content)
        temporary = temporary_name(output)
        with writing(output):
            temporary.mkdir(parents=True)
            try:
                save_tokenizer(trained, temporary, cased if kind == "wordpiece" else None)
                size = load_encoder(temporary).vocab_size
                os.replace(temporary, output)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    return size


if __name__ == "__main__":
    run_entry_point(main)
