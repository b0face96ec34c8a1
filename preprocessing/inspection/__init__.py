"""What a finished shard directory holds, and whether it is sound.

1. `verification`  every byte against the manifest;
2. `summary`       counts and some documents, in print;
3. `lengths`       the counts, in memory of fixed size;
4. `histogram`     the picture of how long the documents are.
"""
