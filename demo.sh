#!/usr/bin/env bash
# Serves a policy over websocket, scores 20 Lift episodes against it, writes the report. Usage: demo.sh [RUN]
set -euo pipefail
cd "$(dirname "$0")"
wam=.venv/bin/wam
run=${1:-runs/demo}
port=${PORT:-8765}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(nproc)}

serve=($wam serve checkpoints/panda-small --port "$port")
mkdir -p "$(dirname "$run")"
log=$run.server.log
"${serve[@]}" >"$log" 2>&1 &
server=$!
echo "server: ${serve[*]} (log: $log)"
trap 'kill $server 2>/dev/null; wait $server 2>/dev/null || true' EXIT
until curl -fs "http://127.0.0.1:$port/readyz" >/dev/null 2>&1; do
  kill -0 $server || { cat "$log" >&2; echo "the server did not start" >&2; exit 1; }
  sleep 0.5
done
$wam eval robosuite/Lift --policy "ws://127.0.0.1:$port" --episodes 20 --workers 1 --run "$run" --video --replan-horizon 8
$wam score "$run"
$wam view "$run"
