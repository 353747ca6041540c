#!/usr/bin/env bash
# Brings up a cluster with Sluice in it, on a machine with docker and kind, and runs the quick start there.
#   hack/kind.sh up      cluster, images, chart, examples, one call          (again: builds and installs anew)
#   hack/kind.sh e2e     the stories of tests/e2e against it
#   hack/kind.sh down    away with it
set -euo pipefail
cd "$(dirname "$0")/.."

export KUBECONFIG="${KUBECONFIG:-$PWD/.tools/kubeconfig}"
export SLUICE_OPERATOR_IMAGE=sluice-operator:dev SLUICE_SIDECAR_IMAGE=sluice-sidecar:dev SLUICE_PULL_POLICY=IfNotPresent
export SLUICE_APP_IMAGE=sluice-app:dev
# How the stories take the API server away and bring it back.
manifests=/etc/kubernetes/manifests
export SLUICE_STOP_APISERVER="docker exec sluice-control-plane mv $manifests/kube-apiserver.yaml /root/"
export SLUICE_START_APISERVER="docker exec sluice-control-plane mv /root/kube-apiserver.yaml $manifests/"
python=.venv/bin/python
kubectl=.tools/kubectl
helm=.tools/helm
namespace=quickstart

up() {
  "$python" hack/tools.py
  kind get clusters | grep -qx sluice || kind create cluster --config hack/kind.yaml --kubeconfig "$KUBECONFIG" --wait 3m
  for part in operator sidecar; do
    docker build --quiet --file "$part/Dockerfile" --tag "sluice-$part:dev" .
    kind load docker-image --name sluice "sluice-$part:dev"
  done
  docker build --quiet --tag "$SLUICE_APP_IMAGE" tests/e2e
  kind load docker-image --name sluice "$SLUICE_APP_IMAGE"
  "$helm" upgrade --install sluice charts/sluice --namespace sluice-system --create-namespace --wait --timeout 5m \
    --set operator.image.repository=sluice-operator,operator.image.tag=dev \
    --set sidecar.image.repository=sluice-sidecar,sidecar.image.tag=dev
  # An image of the same tag is a new one here.
  "$kubectl" --namespace sluice-system rollout restart deployment
  "$kubectl" --namespace sluice-system rollout status deployment --timeout 3m
  "$helm" test sluice --namespace sluice-system
  quickstart
}

quickstart() {
  local stories=tests/e2e/manifests
  "$kubectl" create namespace "$namespace" --dry-run=client --output yaml | "$kubectl" apply --filename -
  "$kubectl" label namespace "$namespace" sluice.dev/inject=true --overwrite
  for name in openai backup; do
    "$kubectl" --namespace "$namespace" create secret generic "$name" --from-literal=primary=sk-old \
      --dry-run=client --output yaml | "$kubectl" --namespace "$namespace" apply --filename -
  done
  for name in mock chat; do
    sed -e "s/MOCK_IMAGE/$SLUICE_SIDECAR_IMAGE/; s/APP_IMAGE/$SLUICE_APP_IMAGE/; s/PULL_POLICY/$SLUICE_PULL_POLICY/" "$stories/$name.yaml" |
      "$kubectl" --namespace "$namespace" apply --filename -
  done
  # The examples as they are, but for the upstreams: here they are the mock.
  for file in examples/quickstart/*.yaml; do
    sed -e 's#baseURL: https://.*#baseURL: http://mock-openai/v1#' "$file" |
      "$kubectl" --namespace "$namespace" apply --filename -
  done
  "$kubectl" --namespace "$namespace" rollout status deployment --timeout 3m
  "$kubectl" --namespace "$namespace" exec deployment/chat --container app -- python -c "$(cat tests/e2e/call.py)" '["user-1"]'
  "$kubectl" --namespace "$namespace" get upstreams,quotaallocations,modelroutes,canarysplits
}

case "${1:-}" in
  up) up ;;
  e2e) .venv/bin/pytest tests/e2e -n 0 "${@:2}" ;;
  down) kind delete cluster --name sluice --kubeconfig "$KUBECONFIG" ;;
  *) sed -n '2,5s/^# \{0,1\}//p' "$0" && exit 2 ;;
esac
