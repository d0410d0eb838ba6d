#!/bin/bash
# A real Slurm of two nodes, n1 and n2, on this machine and on loopback only. Each has two GPUs that are none.
#   cluster.sh up ROOT PORT     write ROOT, start munge, slurmctld and two slurmd; PORT .. PORT+2 must be free
#   cluster.sh cut ROOT NODE    a node loses its power
#   cluster.sh boot ROOT NODE   and gets it back
#   cluster.sh down ROOT        stop everything that `up ROOT` started
# Each slurmd lives in its own UTS, PID and mount namespace, so that `hostname` and name resolution differ by node as
# on a real cluster, and killing the namespace's first process kills the whole node.
set -euo pipefail

command=$1 root=$2
export SLURM_CONF=$root/slurm.conf
nodes="n1 n2"

write_configuration() {
  local port=$1
  mkdir -p "$root"/{state,spool,log,run}
  chmod 755 "$root" "$root"/*          # munge insists that its socket's folder is open to everybody
  (umask 077 && dd if=/dev/urandom of="$root/munge.key" bs=1024 count=1 status=none)
  printf '127.0.0.1 localhost %s n1 n2\n' "$(hostname -s)" > "$root/hosts"
  printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' > "$root/cgroup.conf"
  mkdir -p "$root/dev"
  for gpu in 0 1; do mknod "$root/dev/gpu$gpu" c 1 3; done    # what /dev/null is
  printf 'NodeName=n[1-2] Name=gpu File=%s/dev/gpu[0-1]\n' "$root" > "$root/gres.conf"
  cat > "$SLURM_CONF" <<CONF
ClusterName=llmscaletest
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
CredType=cred/munge
# a credential's life is also the wait before a requeued job may start again
AuthInfo=socket=$root/run/munge.socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$root/state
SlurmdSpoolDir=$root/spool/%n
SlurmctldPidFile=$root/run/slurmctld.pid
SlurmdPidFile=$root/run/slurmd-%n.pid
SlurmctldLogFile=$root/log/slurmctld.log
SlurmdLogFile=$root/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=5
ReturnToService=2
MinJobAge=600
GresTypes=gpu
# nodes claim more cores than the machine has: what runs here is small
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
CONF
}

start_node() {
  mkdir -p "$root/spool/$1"
  # shellcheck disable=SC2016  # expanded inside the namespace
  setsid unshare --uts --pid --mount --fork --mount-proc --kill-child bash -c '
    hostname "$1" && mount --bind "$2/hosts" /etc/hosts && slurmd -D -f "$2/slurm.conf" -N "$1" & wait' \
    node "$1" "$root" < /dev/null > "$root/log/$1.out" 2>&1 &
  echo $! > "$root/run/$1.namespace"
}

idle_nodes() { sinfo --noheader --Node --format=%T 2> /dev/null | grep -c '^idle$' || true; }

up() {
  write_configuration "$1"
  munged --socket="$root/run/munge.socket" --key-file="$root/munge.key" --log-file="$root/log/munged.log" \
    --pid-file="$root/run/munged.pid" --seed-file="$root/run/munge.seed"
  slurmctld -f "$SLURM_CONF"
  for node in $nodes; do start_node "$node"; done
  for _ in $(seq 150); do
    [ "$(idle_nodes)" = 2 ] && return 0
    sleep 0.2
  done
  echo "the cluster did not become idle; its logs:" >&2
  tail -n 5 "$root"/log/* >&2
  return 1
}

down() {
  timeout 5 scancel --user="$(id -un)" 2> /dev/null || true
  local file
  for file in "$root"/run/*.namespace; do stop_process KILL "$file"; done
  for file in "$root"/run/slurmctld.pid "$root"/run/munged.pid; do stop_process TERM "$file"; done
}

# stop_process SIGNAL FILE. Of a node, unshare heeds no signal but KILL; its child, the node's first process, dies with
# it (--kill-child), and everything on the node with that.
stop_process() {
  local pid
  [ -s "$2" ] || return 0
  pid=$(cat "$2")
  kill -s "$1" "$pid" 2> /dev/null || return 0
  for _ in $(seq 100); do
    case $(ps -o stat= -p "$pid") in "" | Z*) return 0 ;; esac    # nobody may reap what was a daemon
    sleep 0.1
  done
}

case $command in
  up) up "$3" ;;
  cut) stop_process KILL "$root/run/$3.namespace" ;;
  boot) start_node "$3" ;;
  down) down ;;
  *) echo "usage: cluster.sh up ROOT PORT | cut ROOT NODE | boot ROOT NODE | down ROOT" >&2; exit 2 ;;
esac
