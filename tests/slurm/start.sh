#!/usr/bin/env bash
# A real one-node Slurm from Debian's packages, with eight GPUs that are not there. Needs root. `stop.sh` ends it.
set -euo pipefail
if [ "$(id -u)" != 0 ]; then echo 'skip: starting Slurm needs root' >&2; exit 77; fi
if ! command -v slurmctld > /dev/null || ! command -v munged > /dev/null; then
  command -v apt-get > /dev/null || { echo 'skip: no apt-get to install Slurm with' >&2; exit 77; }
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -qq -y --no-install-recommends slurmctld slurmd slurm-client munge > /dev/null
fi
here=/run/lead-slurm
host=$(hostname -s)
mkdir -p $here/spool $here/state /etc/slurm /run/munge /var/log/munge /var/lib/munge
for i in 0 1 2 3 4 5 6 7; do [ -e $here/nvidia$i ] || mknod $here/nvidia$i c 1 3; done
if [ -e /etc/slurm/slurm.conf ] && ! grep -q '^# lead test' /etc/slurm/slurm.conf; then
  echo 'skip: this machine has a Slurm of its own' >&2; exit 77
fi
cat > /etc/slurm/slurm.conf << CONF
# lead test: made by tests/slurm/start.sh, removed by stop.sh
ClusterName=lead
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MinJobAge=86400
KillWait=30
SlurmdParameters=config_overrides
GresTypes=gpu
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SchedulerParameters=sched_interval=2,bf_interval=2
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=200000 Gres=gpu:h100:8 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP DefMemPerCPU=1000
CONF
echo "Name=gpu Type=h100 Flags=nvidia_gpu_env File=$here/nvidia[0-7]" > /etc/slurm/gres.conf
chown -R munge: /run/munge /var/log/munge /var/lib/munge /etc/munge
chmod 755 /run/munge
pgrep -x munged > /dev/null || runuser -u munge -- munged
pgrep -x slurmctld > /dev/null || slurmctld
pgrep -x slurmd > /dev/null || slurmd
for _ in $(seq 100); do
  if [ "$(sinfo -h -o %T 2> /dev/null)" = idle ]; then exit 0; fi
  sleep 0.3
done
echo 'Slurm did not come up:' >&2
tail -n 20 $here/*.log >&2
exit 1
