#!/bin/sh
# Prolog= of slurm.conf: a node that cannot do GPU work is drained before a job starts on it, with the reason.
#
# Ends with 1 only then, after which Slurm puts the job back, held (SchedulerParameters=nohold_on_prolog_fail: not held).
# What could not be told, wrong settings and faults of probe's own let the job run, with a line in the system log. A GPU that
# somebody works on, as on a node that jobs share, is only looked at. PrologEpilogTimeout must be more than 60 s.
set -u
PROBE=/usr/local/bin/probe
SCONTROL=/usr/bin/scontrol
SINFO=/usr/bin/sinfo
PATH=/usr/bin:/bin # Slurm sets none
export PATH # and SLURM_CONF=..., where slurm.conf is not in its usual place

say() { # slurmd keeps stderr only of what fails: to the system log too
    echo "prolog: $*" >&2
    logger -t "probe-prolog" -- "$*" 2>/dev/null || :
}

node=${SLURMD_NODENAME:?set by slurmd}
said=$("$PROBE" check --profile node --skip torch --budget 45s --exit-codes slurm)
code=$?
summary=$(printf '%s' "$said" | head -n 1 | LC_ALL=C tr -cd '\40-\176' | cut -c 1-200)

if [ "$code" != 1 ]; then
    [ "$code" = 0 ] || say "$PROBE ended with $code, the job runs: $summary"
    exit 0
fi
say "$node: $summary"
# Whoever has given the node a reason already keeps the word; so does whoever may have, where Slurm does not say.
slurm_has=$(timeout 4 "$SINFO" -h -N -n "$node" -o '%T|%E' | head -n 1)
[ -n "$slurm_has" ] || { say "Slurm does not say how it has $node, its reason is left as it is"; exit 1; }
case ${slurm_has#*|} in
none | '' | probe:*) timeout 4 "$SCONTROL" update "NodeName=$node" State=DRAIN "Reason=probe: $summary" >&2 ;;
esac
exit 1
