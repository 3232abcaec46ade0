# Starts a jobscript as a process and prints its id. Its messages and its exit status are kept under that id.
mkdir -p .snakemake/submitted
sh -c 'kept=.snakemake/submitted/$$; rm -f $kept.status; sh "$0" > $kept.log 2>&1; echo $? > $kept.status' "$1" > /dev/null 2>&1 < /dev/null &
echo $!
