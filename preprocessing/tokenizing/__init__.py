"""Tokenizers: what users have goes in, a directory that `AutoTokenizer` loads comes out, and text becomes ids.

1. `tokenizer`               what `--tokenizer` may be, and what makes the ids of shards;
2. `sentencepiece_model`     a SentencePiece model, and the same in the terms of the tokenizers library;
3. `cutting`                 where a long text may be cut so that its parts have the ids of the whole;
4. `training`                a vocabulary of one's own, into a directory that appears whole;
5. `wordpiece_training`      of BERT's kind;
6. `sentencepiece_training`  unigram and BPE.
"""
