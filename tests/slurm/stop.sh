#!/usr/bin/env bash
# Ends what start.sh started, and takes its files away.
scancel --user=root 2> /dev/null
for name in slurmd slurmctld munged; do pkill -x "$name"; done
for _ in $(seq 50); do pgrep -x slurmd > /dev/null || pgrep -x slurmctld > /dev/null || break; sleep 0.2; done
grep -q '^# lead test' /etc/slurm/slurm.conf 2> /dev/null && rm -f /etc/slurm/slurm.conf /etc/slurm/gres.conf
rm -rf /run/lead-slurm
exit 0
