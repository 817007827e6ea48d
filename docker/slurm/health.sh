#!/bin/sh
# HealthCheckProgram= of slurm.conf: drains a node that cannot do GPU work, and resumes it when it can again.
#
# Slurm does nothing with the exit code, so it is always 0. A reason that is not ours is never touched: only what starts
# with "probe:" is replaced or resumed. What could not be told changes nothing. Beside a job GPUs are only looked at.
# Slurm kills this after 60 s: 45 s for probe, and three times at most 4 s for Slurm's own programs.
set -u
PROBE=/usr/local/bin/probe
SCONTROL=/usr/bin/scontrol
SINFO=/usr/bin/sinfo
PATH=/usr/bin:/bin # Slurm sets none
export PATH # and SLURM_CONF=..., where slurm.conf is not in its usual place

say() { # slurmd keeps stderr only of what fails: to the system log too
    echo "health: $*" >&2
    logger -t "probe-health" -- "$*" 2>/dev/null || :
}

node=${SLURMD_NODENAME:?set by slurmd}
said=$("$PROBE" check --profile node --skip torch --budget 45s --exit-codes slurm)
code=$?
summary=$(printf '%s' "$said" | head -n 1 | LC_ALL=C tr -cd '\40-\176' | cut -c 1-200)

slurm_has=$(timeout 4 "$SINFO" -h -N -n "$node" -o '%T|%E' | head -n 1)
state=${slurm_has%%|*}
reason=${slurm_has#*|}
[ -n "$slurm_has" ] || { say "Slurm does not say how it has $node"; exit 0; }

draining=no
case $state in *drain*) draining=yes ;; esac

case $code:$summary in
1:*)
    say "$node: $summary"
    case $draining:$reason in
    no:none | no: | no:probe:*)
        timeout 4 "$SCONTROL" update "NodeName=$node" State=DRAIN "Reason=probe: $summary" >&2
        ;;
    esac
    ;;
0:healthy* | 0:degraded*)
    case $draining:$reason in
    yes:probe:*) timeout 4 "$SCONTROL" update "NodeName=$node" State=RESUME >&2 ;;
    esac
    ;;
*) say "$PROBE ended with $code, nothing is changed: $summary" ;;
esac
exit 0
