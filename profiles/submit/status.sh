# Says what became of a process that start.sh started. One that left no status was killed.
if kill -0 "$1" 2> /dev/null; then echo running  # asked first: the status is written before the process ends
elif [ "$(cat ".snakemake/submitted/$1.status" 2> /dev/null)" = 0 ]; then echo success
else echo failed
fi
