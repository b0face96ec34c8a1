"""SentencePiece models: their ids from the library itself, and the same tokenizer as `AutoTokenizer` can hold it.

The shards get the library's ids. What `AutoTokenizer` loads is the model in the terms of the `tokenizers` library,
which follows the original but for two things: the library adds a unigram model's scores up in 32 bits, so that in a
long document rounding decides between segmentations of equal worth (train_sentencepiece avoids that); and combining
marks that nothing composes with are sometimes dropped.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from pipeline.errors import UserError

SPACE = "\u2581"
"""How SentencePiece writes the space before a word."""

_UNIGRAM, _BPE = 1, 2
_NORMAL, _USER_DEFINED = 1, 4
_SPECIAL_NAMES = {
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<cls>"),
    "sep_token": ("[SEP]", "<sep>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""Models made for other networks lack some of these; what is missing gets the ids after the model's own."""


class SentencePieceEncoder:
    """Ids of the sentencepiece library; `vocab_size` counts special tokens too that the model itself lacks."""

    def __init__(self, path: Path, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._processor = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def __call__(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Ids (tokens,) int32 of each text, without special tokens."""
        # One thread: the build runs one process per core.
        return [np.array(ids, dtype=np.int32) for ids in self._processor.encode(list(texts), num_threads=1)]


def read_model(path: Path) -> Any:
    """The parsed model file.

    Raises:
        UserError: it is none, or of a kind that BERT's tokenizers cannot follow.
    """
    try:
        raw = path.read_bytes()
        sentencepiece.SentencePieceProcessor(model_proto=raw)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: cannot read this as a SentencePiece model") from error
    model = sentencepiece_model_pb2.ModelProto.FromString(raw)
    if model.trainer_spec.model_type not in (_UNIGRAM, _BPE):
        raise UserError(f"{path}: expected a SentencePiece model of kind unigram or bpe")
    if model.trainer_spec.treat_whitespace_as_suffix:
        raise UserError(f"{path}: this SentencePiece model marks the ends of words; expected one that marks beginnings")
    return model


def as_transformers(model: Any, max_length: int) -> Any:
    """The model as a `PreTrainedTokenizerFast` of transformers that frames text as BERT does."""
    from transformers import PreTrainedTokenizerFast

    special = _special_tokens(model)
    tokenizer = Tokenizer(_segmentation(model))
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    scheme = "always" if model.normalizer_spec.add_dummy_prefix else "never"
    # Where no piece spans words, one word at a time is the same and its results can be kept.
    split = not any(SPACE in piece.piece[1:] for piece in model.pieces)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=split)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(SPACE, scheme)])
    if model.trainer_spec.model_type == _BPE:
        tokenizer.add_tokens(
            [AddedToken(piece.piece, normalized=False) for piece in model.pieces if piece.type == _USER_DEFINED]
        )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special.values()])
    cls, sep = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[f"{cls}:0", "$A:0", f"{sep}:0"],
        pair=[f"{cls}:0", "$A:0", f"{sep}:0", "$B:1", f"{sep}:1"],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=inputs, model_max_length=max_length, **special
    )


def _special_tokens(model: Any) -> dict[str, str]:
    pieces = {piece.piece for piece in model.pieces}
    unknown = model.pieces[model.trainer_spec.unk_id].piece
    chosen = {
        role: next((name for name in names if name in pieces), names[0]) for role, names in _SPECIAL_NAMES.items()
    }
    return {**chosen, "unk_token": unknown}


def _segmentation(model: Any) -> models.Model:
    spec = model.trainer_spec
    if spec.model_type == _UNIGRAM:
        best = max((piece.score for piece in model.pieces if piece.type == _NORMAL), default=0.0)
        scores = [(piece.piece, _unigram_score(piece, best)) for piece in model.pieces]
        return models.Unigram(scores, spec.unk_id, spec.byte_fallback)
    ids = {piece.piece: index for index, piece in enumerate(model.pieces)}
    # A BPE model's pieces are in the order in which they were merged.
    merges = [merge for piece in model.pieces if piece.type == _NORMAL for merge in _merges_into(piece.piece, ids)]
    unknown = model.pieces[spec.unk_id].piece
    return models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=spec.byte_fallback)


def _unigram_score(piece: Any, best: float) -> float:
    """The score of a piece; the library's own rule makes a user's symbols beat any way to spell them."""
    return len(piece.piece.encode()) * best - 0.1 if piece.type == _USER_DEFINED else piece.score


def _merges_into(piece: str, ids: dict[str, int]) -> list[tuple[str, str]]:
    splits = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
    known = [(left, right) for left, right in splits if left in ids and right in ids]
    return sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))


def _normalizer(spec: Any) -> normalizers.Normalizer:
    steps = list[normalizers.Normalizer]()
    if spec.precompiled_charsmap:
        if "nfkc" in spec.name:
            # `Precompiled` looks at the first few bytes of a character with its marks; composed ones fit in there.
            steps.append(normalizers.NFC())
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
        steps.append(normalizers.Replace(Regex("^ | $"), ""))
    return normalizers.Sequence(steps)
