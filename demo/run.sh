#!/usr/bin/env bash
# The demo: a shop, a bad release, and what Backstep knows about it. `make demo` builds what it needs and starts it.
#
#   BIN                    folder of the programs `backstep`, `kubectl-backstep` and `testbed`
#   BACKSTEP_DEMO_CONTEXT  a context of your kubeconfig to use instead of a control plane of the demo's own; only what the demo made
#                          there is removed again
#   NO_COLOR               no colours; there are none anyway where the output is no terminal
set -euo pipefail
cd "$(dirname "$0")/.."

: "${BIN:?set BIN to the folder of the built programs, or run make demo}"
BIN=$(cd "$BIN" && pwd)
readonly BIN CONTEXT=${BACKSTEP_DEMO_CONTEXT:-} DEADLINE=60 OPERATOR_NAMESPACE=backstep-system
for program in backstep kubectl-backstep testbed; do
  [[ -x $BIN/$program ]] || { echo "demo: $BIN/$program is missing: run make demo, which builds it" >&2; exit 1; }
done

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' cyan=$'\e[36m' plain=$'\e[0m'
else
  bold='' dim='' green='' red='' cyan='' plain=''
fi

tell() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
note() { printf '%s%s%s\n' "$dim" "$*" "$plain"; }
fail() {
  printf '%sdemo: %s%s\n' "$red" "$*" "$plain" >&2
  exit 1
}

# --- what must go again, newest first ------------------------------------------------------------------------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/backstep-demo.XXXXXX")
log=/dev/null      # of what is going on right now: its last lines are shown when it fails
operator=''        # process
undo=()            # commands, run from last to first
where=()           # what the plugin must be told to find the operator

# A control plane of the demo's own goes as a whole.
undo_in_cluster() { [[ -z $CONTEXT ]] || undo+=("$1"); }

clean_up() {
  local status=$? command i
  trap '' INT TERM HUP PIPE
  set +e
  # Above 128 somebody ended it; there is nothing to explain.
  if ((status > 0 && status < 128)) && [[ -s $log ]]; then
    printf '\n%sthe last lines of %s:%s\n' "$red" "${log##*/}" "$plain" >&2
    tail -n 30 "$log" >&2
  fi
  ((${#undo[@]} == 0)) || note 'Cleaning up …'
  for ((i = ${#undo[@]} - 1; i >= 0; i--)); do
    command=${undo[i]}
    log=$work/clean-up.log
    if ! eval "$command" >"$log" 2>&1; then
      printf '%sdemo: left behind, because this failed: %s%s\n' "$red" "$command" "$plain" >&2
      tail -n 30 "$log" >&2
      ((status != 0)) || status=1
    fi
  done
  rm -rf "$work"
  exit "$status"
}
trap clean_up EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 141' PIPE
trap 'exit 143' TERM

# wait_for WHAT COMMAND...: until the command succeeds.
wait_for() {
  local what=$1 end=$((SECONDS + DEADLINE))
  shift
  until "$@"; do
    ((SECONDS < end)) || fail "no $what after $DEADLINE s"
    sleep 0.1
  done
}

end_operator() {
  local end=$((SECONDS + 30))
  kill "$operator" 2>/dev/null || return 0
  while kill -0 "$operator" 2>/dev/null; do
    ((SECONDS < end)) || kill -KILL "$operator"
    sleep 0.1
  done
}

# --- who does what ------------------------------------------------------------------------------------------------------------------

# as WHO COMMAND...: shows the command and runs it as that user. The exit status is the command's.
as() {
  local who=$1
  shift
  show "$who" "$@"
  KUBECONFIG=$work/$who.kubeconfig "$@" 2>&1 | tee -a "$work/shown.txt"
}

# show WHO COMMAND...: as it would be typed.
show() {
  local who=$1 word line=''
  shift
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=@,+-]+$ ]] || word="'$word'"
    line+=" $word"
  done
  printf '\n%s%s$%s%s\n' "$cyan" "$who" "$plain" "$line"
}

# Like `as`, for a command whose point is the exit status it is expected to have.
as_exit() {
  local expected=$1 status=0
  shift
  as "$@" || status=$?
  [[ $status == "$expected" ]] || fail "\`${*:2}\` exited with $status instead of $expected"
}

admin() { KUBECONFIG=$work/admin.kubeconfig "$@"; }

# quietly NAME COMMAND...: the output goes to a log that is shown only when something fails.
quietly() {
  log=$work/$1.log
  shift
  "$@" >>"$log" 2>&1
}

# private FILE: fills a kubeconfig from standard input that only this user may read.
private() { (umask 077 && cat >"$1"); }

# --- a control plane ----------------------------------------------------------------------------------------------------------------

own_control_plane() {
  local name=demo-$$
  tell 'Starting a Kubernetes control plane: etcd, API server, controller manager, scheduler; its one node only pretends to run Pods'
  undo+=("'$BIN/testbed' down --name $name")
  quietly testbed "$BIN/testbed" up --name "$name"
  private "$work/admin.kubeconfig" <"$("$BIN/testbed" kubeconfig --name "$name")"
  private "$work/alice.kubeconfig" <"$("$BIN/testbed" kubeconfig --name "$name" --user alice --groups shop-team)"
  private "$work/bob.kubeconfig" <"$("$BIN/testbed" kubeconfig --name "$name" --user bob --groups sre)"
}

your_control_plane() {
  tell "Using the cluster of your context $CONTEXT"
  kubectl --context "$CONTEXT" config view --raw --minify --flatten | private "$work/admin.kubeconfig"
  # There, alice and bob are impersonated: their rights are as real as with certificates of their own.
  local user
  for user in alice bob; do
    awk -v user="$user" '/^users:/ { users = 1 } users && /^  user:/ { print "  user:"; print "    as: " user; next } { print }' \
      "$work/admin.kubeconfig" | private "$work/$user.kubeconfig"
  done
  quietly cluster admin kubectl auth can-i create clusterrolebindings \
    || fail "context $CONTEXT may not create ClusterRoleBindings, which installing the chart needs"
}

# --- Backstep -----------------------------------------------------------------------------------------------------------------------

kinds() { admin kubectl get crd --output name | grep '\.backstep\.dev$' | sort; }

# The chart keeps its kinds when it is uninstalled, so that no snapshot goes with it. The demo takes along those it brought.
remove_new_kinds() {
  kinds >"$work/kinds.after" || true
  comm -13 "$work/kinds.before" "$work/kinds.after" | while read -r kind; do
    admin kubectl delete "$kind" --timeout "${DEADLINE}s"
  done
}

install_chart() {
  local installed namespace ready install
  installed=$(admin kubectl get deployments --all-namespaces --selector app.kubernetes.io/name=backstep \
    --output 'jsonpath={range .items[*]}{.metadata.namespace} {.status.readyReplicas}{"\n"}{end}')
  if [[ -n $installed ]]; then
    read -r namespace ready <<<"$installed"
    ((${ready:-0} > 0)) || fail "Backstep is installed in $namespace but no replica is ready: mend or remove it first"
    note "Backstep runs already, in the namespace $namespace."
    [[ $namespace == "$OPERATOR_NAMESPACE" ]] || where=(--operator-namespace "$namespace")
    return
  fi
  ! admin kubectl get namespace "$OPERATOR_NAMESPACE" >/dev/null 2>&1 \
    || fail "the namespace $OPERATOR_NAMESPACE exists without Backstep in it: remove it first"

  tell 'Installing Backstep with Helm'
  note 'No replicas: no real node, so the operator runs beside the cluster, with the rights of its own ServiceAccount only.'
  kinds >"$work/kinds.before" || true
  undo_in_cluster remove_new_kinds
  undo_in_cluster "admin kubectl delete namespace $OPERATOR_NAMESPACE --ignore-not-found --timeout ${DEADLINE}s"
  undo_in_cluster "admin helm uninstall backstep --namespace $OPERATOR_NAMESPACE --ignore-not-found --timeout ${DEADLINE}s"
  install=(helm install backstep charts/backstep --namespace "$OPERATOR_NAMESPACE" --create-namespace --set replicas=0)
  show admin "${install[@]}"
  quietly helm admin "${install[@]}"
  run_operator
}

leads() {
  kill -0 "$operator" 2>/dev/null || fail 'the operator ended'
  [[ $(admin kubectl get lease backstep --namespace "$OPERATOR_NAMESPACE" --output 'jsonpath={.spec.holderIdentity}' 2>/dev/null) == "$1" ]]
}

run_operator() {
  local token identity=backstep-demo-$$
  token=$(admin kubectl create token backstep --namespace "$OPERATOR_NAMESPACE" --duration 1h)
  # Nothing of the administrator's may be left in what the operator reads.
  cp "$work/admin.kubeconfig" "$work/both.kubeconfig"
  KUBECONFIG=$work/both.kubeconfig kubectl config set-credentials backstep-operator --token "$token" >/dev/null
  KUBECONFIG=$work/both.kubeconfig kubectl config set-context --current --user backstep-operator >/dev/null
  KUBECONFIG=$work/both.kubeconfig kubectl config view --raw --minify --flatten | private "$work/operator.kubeconfig"
  rm "$work/both.kubeconfig"

  log=$work/operator.log
  env -u KUBECONFIG "$BIN/backstep" run --kubeconfig "$work/operator.kubeconfig" --namespace "$OPERATOR_NAMESPACE" \
    --service-account backstep --store secrets --guard-settle 1s --log-format text --admin-address 127.0.0.1:0 --identity "$identity" >"$log" 2>&1 &
  operator=$!
  undo+=(end_operator)
  wait_for 'leader among the operators' leads "$identity"
  note 'The operator leads.'
}

# --- the story ----------------------------------------------------------------------------------------------------------------------

story() {
  local shop=$1
  tell "A team's shop, release 1.8: two workloads, a Service, a Secret, and a kind of their own"
  as alice kubectl apply --server-side -f demo/shop/release-1.8.yaml
  [[ -n $CONTEXT ]] || as alice kubectl rollout status deployment/web --timeout "${DEADLINE}s"

  tell 'alice takes a snapshot before the next release'
  as alice kubectl backstep snapshot create before-1-9 --lineage shop --description 'before the 1.9 release' --wait="${DEADLINE}s"

  tell 'Release 1.9 goes out, and checkout breaks'
  as alice kubectl apply --server-side -f demo/shop/release-1.9.yaml
  as alice kubectl delete configmap opening-hours
  [[ -n $CONTEXT ]] || as alice kubectl rollout status deployment/web --timeout "${DEADLINE}s"
  as alice kubectl backstep snapshot create broken-1-9 --lineage shop --wait="${DEADLINE}s"
  as alice kubectl backstep snapshot list

  tell 'What did 1.9 really change? The contents are for administrators; Secret values are hidden even from them'
  as_exit 1 admin kubectl backstep snapshot diff shop@1 shop@2 --namespace "$shop" "${where[@]}"

  tell 'alice cannot read contents: they hold the Secrets of every team'
  as_exit 4 alice kubectl backstep snapshot diff shop@1 shop@2

  tell 'What would it take to go back? alice asks for the plan; nothing is written'
  as alice kubectl backstep plan before-1-9 --prune created

  tell 'alice asks for the rollback'
  as alice kubectl backstep rollback before-1-9 --name undo-1-9 --prune created --verify-rollout Deployment/web --verify-snapshot \
    --stabilize 1s --reason 'checkout is broken since 1.9'

  tell 'alice may approve rollbacks, but not her own'
  as_exit 8 alice kubectl backstep approve undo-1-9 --yes --diffs none

  tell 'bob reads the same plan and approves exactly that'
  as bob kubectl backstep approve undo-1-9 --yes --comment 'the release is worse'

  tell 'Back to 1.8: what changed comes back, what was lost is created, what was added goes; nothing else is touched'
  as alice kubectl backstep watch undo-1-9 --timeout "${DEADLINE}s"

  tell 'Is the shop what it was? And does the former owner notice anything?'
  as admin kubectl backstep snapshot diff shop@1 --against live --namespace "$shop" "${where[@]}"
  as alice kubectl apply --server-side -f demo/shop/release-1.8.yaml

  tell 'The record: who, why, by whose leave, and what came of it'
  as alice kubectl backstep history

  tell 'Was 1.9 innocent after all? The rollback itself is undone, under approval like any other'
  as alice kubectl backstep undo undo-1-9 --name redo-1-9 --stabilize 1s --reason 'the fault was elsewhere'
  as bob kubectl backstep approve redo-1-9 --yes --diffs none
  as alice kubectl backstep watch redo-1-9 --timeout "${DEADLINE}s"
  as alice kubectl get configmap web --output 'jsonpath={.data.checkout}{"\n"}'
  as alice kubectl backstep timeline --lineage shop

  tell 'Every stored byte is read again and checked'
  as admin kubectl backstep snapshot verify before-1-9 broken-1-9 --namespace "$shop" "${where[@]}"

  if grep --fixed-strings --quiet -e demo-key-of-release -e "$(printf demo-key-of-release | base64 | cut -c 1-20)" "$work/shown.txt"; then
    fail 'a Secret value was shown above'
  fi
}

main() {
  local shop=shop programs
  log=$work/build.log
  # kubectl and helm of the versions that the test bed knows, and the plugin itself.
  programs=$("$BIN/testbed" build 2>"$log" | grep -E '/(kubectl|helm)$' | sed 's|/[^/]*$||' | paste -sd :)
  export PATH=$BIN:$programs:$PATH
  if [[ -n $CONTEXT ]]; then
    shop=backstep-demo-shop-$$
    your_control_plane
  else
    own_control_plane
  fi
  install_chart

  log=$work/shop.log
  if ! admin kubectl get crd promotions.shop.example >/dev/null 2>&1; then
    undo_in_cluster "admin kubectl delete crd promotions.shop.example --ignore-not-found --timeout ${DEADLINE}s"
    quietly shop admin kubectl apply -f demo/shop/promotion-crd.yaml
    quietly shop admin kubectl wait --for=condition=Established crd/promotions.shop.example --timeout="${DEADLINE}s"
  fi
  undo_in_cluster "admin kubectl delete namespace $shop --ignore-not-found --timeout ${DEADLINE}s"
  quietly shop admin kubectl create namespace "$shop"
  undo_in_cluster 'admin kubectl delete -f demo/shop/approvers.yaml --ignore-not-found'
  quietly shop admin kubectl apply -f demo/shop/approvers.yaml
  quietly shop admin kubectl apply --namespace "$shop" -f demo/shop/team.yaml
  quietly shop env KUBECONFIG="$work/alice.kubeconfig" kubectl config set-context --current --namespace "$shop"
  quietly shop env KUBECONFIG="$work/bob.kubeconfig" kubectl config set-context --current --namespace "$shop"

  [[ ! -f $work/operator.log ]] || log=$work/operator.log
  story "$shop"
  printf '\n%s✔ %s%s\n' "$green" "That was a real control plane, real users and real rights, in $SECONDS s." "$plain"
}

main "$@"
