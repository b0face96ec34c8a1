"""Documents out of files: what a document is in each format, and what is no sound document.

From the words on a command line to the text of a document, in the order of the files:

1. `specs`       `FORMAT:PATH` becomes files, each with its format;
2. `formats`     the table of formats, and the readers of those that are plain text in lines;
3. `mediawiki`   the reader of XML dumps, a page at a time;
4. `wikitext`    the markup of such a page becomes the text that its reader sees;
5. `hub`         the reader of data sets that `datasets` streams;
6. `compressed`  any file as bytes of text, compressed or not;
7. `documents`   what readers share: the piece that one reads, the document it gives, the tally of what it leaves out.
"""
