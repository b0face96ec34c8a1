"""One build on any number of processes, which gives the same bytes for every number.

What happens, in the order of the files:

1. `run`         a build from start to end, which calls all others;
2. `plan`        the files become a fixed list of tasks;
3. `parts`       or every N-th of them, where a job array builds in parts;
4. `cleaning`    documents become clean or are left out;
5. `reflow`      hard-wrapped lines become paragraphs on the way;
6. `reading`     the first pass reads, cleans and tokenizes the documents of a task into working files;
7. `duplicates`  documents that occur twice are found, once every task is read;
8. `sharding`    the second pass makes shards of the working files, without the duplicates;
9. `output`      whose the output directory is, what is done in it, and the manifest that ends the build;
10. `workers`    the processes of one machine, which take the tasks of both passes;
11. `ranks`      the ranks that mpirun or srun started, which share them;
12. `progress`   what is shown meanwhile.
"""
