"""One build on any number of processes, which gives the same bytes for every number.

What happens, in the order of the files:

1. `run`         a build from start to end, which calls all others;
2. `plan`        the files become a fixed list of tasks;
3. `cleaning`    the first pass reads and cleans the documents of a task into working files;
4. `reflow`      hard-wrapped lines become paragraphs on the way;
5. `duplicates`  documents that occur twice are found, once every task is read;
6. `sharding`    the second pass tokenizes the working files and writes shards;
7. `output`      whose the output directory is, what is done in it, and the manifest that ends the build;
8. `workers`     the processes of one machine, which take the tasks of both passes;
9. `ranks`       the ranks that mpirun or srun started, which share them;
10. `progress`   what is shown meanwhile.
"""
