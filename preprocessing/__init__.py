"""From text to token shards: four doors and four rooms.

The doors read a command line and make one call: `train_tokenizer`, `build_shards`, `verify_shards`, `inspect_shards`.
The rooms, in the order in which text passes through them:

1. `readers`     documents out of files of any format, and what is wrong with those files;
2. `tokenizing`  tokenizers: trained, read, saved, and asked for ids;
3. `build`       one build on many processes, from the list of tasks to the manifest;
4. `inspection`  what a finished shard directory holds, and whether it is sound.
"""
