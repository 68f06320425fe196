#!/usr/bin/env bash
# The smallest study through the Slurm profile, on a Slurm controller of this machine, with one job killed in between.
#
# Needs root, Debian's packages slurm-wlm and munge, and the extra `slurm`. The controller works in a temporary folder
# and ends with the script; while it runs it needs /etc/slurm/slurm.conf, where jobs look, so there must be none.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
command -v slurmctld slurmd munged sbatch >/dev/null || {
    echo "slurm.sh: no Slurm here; apt-get install slurm-wlm munge" >&2
    exit 2
}
[ "$(id -u)" = 0 ] || { echo "slurm.sh: slurmd must be started by root" >&2; exit 2; }
SLURM_CONF=/etc/slurm/slurm.conf
[ ! -e "$SLURM_CONF" ] || { echo "slurm.sh: $SLURM_CONF exists; this machine has a Slurm of its own" >&2; exit 2; }

place=$(mktemp -d)
chmod 755 "$place"
end() {
    status=$?
    for name in slurmd slurmctld munged; do
        [ -s "$place/$name.pid" ] && kill "$(cat "$place/$name.pid")" 2>/dev/null || true
    done
    [ "$status" = 0 ] || tail -n 20 "$place"/*.log "$place"/*.txt >&2 || true
    rm -rf "$place" "$SLURM_CONF"
    exit "$status"
}
trap end EXIT
trap "exit 143" TERM INT HUP

mkdir "$place"/{munge,state,spool}
dd if=/dev/urandom of="$place/munge/key" bs=1 count=1024 status=none
chmod 700 "$place/munge"
chmod 400 "$place/munge/key"
chown -R munge "$place/munge"
# The socket's folder must be open to all.
mkdir "$place/socket"
chmod 755 "$place/socket"
chown munge "$place/socket"
touch "$place/munged.pid"
chown munge "$place/munged.pid"
runuser -u munge -- munged --key-file "$place/munge/key" --socket "$place/socket/socket" \
    --log-file "$place/munge/log" --pid-file "$place/socket/pid" --seed-file "$place/munge/seed"
cp "$place/socket/pid" "$place/munged.pid"

host=$(hostname -s)
cat >"$SLURM_CONF" <<CONF
ClusterName=loopback
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$place/socket/socket
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmctldPort=26817
SlurmdPort=26818
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd.pid
SlurmctldLogFile=$place/slurmctld.log
SlurmdLogFile=$place/slurmd.log
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld
slurmd
for _ in $(seq 30); do
    [ "$(sinfo -h -o %t)" = idle ] && break
    sleep 1
done
sinfo

results=$place/results
study=$place/small.yaml
"$python" - "$study" <<'PYTHON'
import sys
from pathlib import Path

import yaml

content = yaml.safe_load(Path("workflow/studies/smoke.yaml").read_text())
content |= {"name": "small", "tasks": ["cola"], "methods": ["base", "lora-r4", "mola-2468"], "seeds": [0]}
content["training"] |= {"epochs": 20, "checkpoint_minutes": 0.02}
content["compute"] = {"threads": 1, "memory_gb": 1, "hours": 0.5}
Path(sys.argv[1]).write_text(yaml.safe_dump(content))
PYTHON

# What needs no cluster, as on a login node; then the cells, two at a time.
config=(--config "study=$study" "results=$results")
"$python" -m snakemake --cores 2 prefetch "${config[@]}" >"$place/prefetch.txt" 2>&1
HF_HUB_OFFLINE=1 "$python" -m snakemake --profile workflow/profiles/slurm --latency-wait 5 \
    --seconds-between-status-checks 5 --slurm-init-seconds-before-status-checks 5 \
    "${config[@]}" >"$place/run.txt" 2>&1 &
run=$!

# Kill one training on its way, as a failing node would; the profile's retries start it again.
victim=$results/small/logs/cell/cola/mola-2468/seed0.log
for _ in $(seq 600); do
    kill -0 "$run" 2>/dev/null || break
    grep -q "step " "$victim" 2>/dev/null && break
    sleep 0.5
done
process=$(pgrep -f "mola_core.cli cell .*$place.*mola-2468" | head -n 1)
kill -KILL "$process"
echo "killed the training of mola-2468 (process $process)"

wait "$run" || { echo "slurm.sh: the run failed" >&2; exit 1; }
grep -c "submitted with SLURM jobid" "$place/run.txt" || true
grep -q "restart\|Trying to restart\|attempt" "$place/run.txt" || { echo "slurm.sh: no job was tried again" >&2; exit 1; }
for method in base lora-r4 mola-2468; do
    test -s "$results/small/cells/cola/$method/seed0/manifest.json"
done
test -s "$results/small/summary.md"

# And nothing is left to do.
"$python" -m snakemake -n "${config[@]}" 2>&1 | grep -q "Nothing to be done"
echo "slurm.sh: the study went through Slurm, a killed job included"
