{{/* Labels of every object. */}}
{{- define "sluice.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: sluice
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{ include "sluice.commonSelector" . }}
{{- end }}

{{- define "sluice.commonSelector" -}}
app.kubernetes.io/name: sluice
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Selector of one component's pods; takes (list context component). */}}
{{- define "sluice.selector" -}}
{{ include "sluice.commonSelector" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image reference; takes (list context imageValues). */}}
{{- define "sluice.image" -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default (index . 0).Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* DNS names of webhook and sync server: what their shared certificate has to hold. */}}
{{- define "sluice.dnsNames" -}}
sluice-injector.{{ .Release.Namespace }}.svc,sluice-operator.{{ .Release.Namespace }}.svc
{{- end }}

{{/* Whether old kubelets must be asked about: a kubelet is at most three minor versions behind its API server. */}}
{{- define "sluice.nativeSidecar" -}}
{{- if and (eq .Values.injector.nativeSidecar "Auto") (semverCompare ">=1.32.0-0" .Capabilities.KubeVersion.Version) -}}
Always
{{- else -}}
{{ .Values.injector.nativeSidecar }}
{{- end -}}
{{- end }}

{{- define "sluice.issuer" -}}
{{- if eq .Values.certificates.issuer "CertManager" }}External{{ else }}Sluice{{ end -}}
{{- end }}

{{/* Which nodes are possible; takes a component's values. */}}
{{- define "sluice.nodes" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Further environment variables; takes a map. */}}
{{- define "sluice.environment" -}}
{{- range $name, $value := . }}
- name: {{ $name }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}

{{/* Where pods of one component go; takes (list context component values). */}}
{{- define "sluice.placement" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- include "sluice.nodes" $values }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{- toYaml (hasKey . "labelSelector" | ternary . (set (deepCopy .) "labelSelector" (dict "matchLabels" (include "sluice.selector" (list $root $component) | fromYaml)))) | nindent 4 }}
  {{- end }}
{{- end }}
affinity:
{{- if $values.affinity }}
  {{- toYaml $values.affinity | nindent 2 }}
{{- else }}
  podAntiAffinity:
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "sluice.selector" (list $root $component) | nindent 14 }}
{{- end }}
{{- end }}

{{/* What both entries of the webhook configuration share. */}}
{{- define "sluice.webhook" -}}
admissionReviewVersions: [v1]
clientConfig:
  service:
    name: sluice-injector
    namespace: {{ .Release.Namespace }}
    path: /inject
    port: 443
failurePolicy: {{ .Values.injector.failurePolicy }}
matchPolicy: Equivalent
reinvocationPolicy: IfNeeded
sideEffects: None
timeoutSeconds: {{ .Values.injector.timeoutSeconds }}
rules:
  - apiGroups: [""]
    apiVersions: [v1]
    operations: [CREATE]
    resources: [pods]
    scope: Namespaced
matchConditions:
  - name: not-a-static-pod
    expression: "!has(object.metadata.annotations) || !('kubernetes.io/config.mirror' in object.metadata.annotations)"
{{- end }}

{{- define "sluice.excludedNamespaces" -}}
key: kubernetes.io/metadata.name
operator: NotIn
values:
  {{- range append .Values.injector.excludedNamespaces .Release.Namespace | uniq }}
  - {{ . }}
  {{- end }}
{{- end }}
