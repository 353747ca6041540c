{{/* The injector's settings file: sluice_operator.injector_settings.InjectorSettings as JSON. */}}
{{- define "sluice.injectorSettings" -}}
{{- $sidecar := dict
  "image" (include "sluice.image" (list . .Values.sidecar.image))
  "imagePullPolicy" .Values.sidecar.image.pullPolicy
  "proxyPort" (int .Values.sidecar.proxyPort)
  "adminPort" (int .Values.sidecar.adminPort)
  "adminHost" .Values.sidecar.adminHost
  "resources" .Values.sidecar.resources
  "preStopSeconds" (int .Values.sidecar.preStopSeconds)
  "whenUnconfigured" .Values.sidecar.whenUnconfigured
  "environment" .Values.sidecar.environment
-}}
{{- if kindIs "invalid" .Values.sidecar.runAsUser }}
{{- $_ := set $sidecar "runAsUser" nil }}
{{- else }}
{{- $_ := set $sidecar "runAsUser" (int64 .Values.sidecar.runAsUser) }}
{{- end }}
{{- if .Values.sync.enabled }}
{{- $_ := set $sidecar "syncUrl" (printf "https://sluice-operator.%s.svc:%d" .Release.Namespace (int .Values.sync.port)) }}
{{- end }}
{{- dict "version" .Chart.AppVersion "nativeSidecar" (include "sluice.nativeSidecar" .) "sidecar" $sidecar | toPrettyJson -}}
{{- end }}
