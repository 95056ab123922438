{{/* Names and labels. Pods are selected by gemline.dev/* alone: KubeRay writes app.kubernetes.io/* of its own. */}}

{{- define "gemline.fullname" -}}
{{- contains "gemline" .Release.Name | ternary .Release.Name (printf "%s-gemline" .Release.Name) -}}
{{- end -}}

{{/* part: what a pod is. Takes {root, part}. */}}
{{- define "gemline.selector" -}}
gemline.dev/release: {{ .root.Release.Name }}
gemline.dev/part: {{ .part }}
{{- end -}}

{{- define "gemline.labels" -}}
app.kubernetes.io/name: gemline
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/component: {{ .part }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end -}}

{{/* Labels of a pod. */}}
{{- define "gemline.podLabels" -}}
{{ include "gemline.selector" . }}
app.kubernetes.io/name: gemline
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{- define "gemline.image" -}}
{{- $image := index .root.Values.images .name -}}
{{- $tag := $image.tag | default .root.Chart.AppVersion -}}
{{- $image.repository }}:{{ $tag }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{- define "gemline.redisHost" -}}
{{- .Values.redis.internal | ternary (printf "%s-redis" (include "gemline.fullname" .)) .Values.redis.external.host -}}
{{- end -}}

{{- define "gemline.redisPort" -}}
{{- .Values.redis.internal | ternary 6379 .Values.redis.external.port -}}
{{- end -}}

{{- define "gemline.redisScheme" -}}
{{- and (not .Values.redis.internal) .Values.redis.external.tls | ternary "rediss" "redis" -}}
{{- end -}}

{{- define "gemline.tlsSecret" -}}
{{- has .Values.internalTls.mode (list "certManager" "job") | ternary (printf "%s-internal" (include "gemline.fullname" .)) .Values.internalTls.existingSecret -}}
{{- end -}}

{{/* Ports of the workers; one replica a pod, so they are fixed. */}}
{{- define "gemline.workerPort" -}}9461{{- end -}}
{{- define "gemline.workerMetricsPort" -}}9464{{- end -}}

{{/* Roles of a model that have pods, a word each. */}}
{{- define "gemline.roles" -}}
tokenization{{ if eq .topology "split" }} prefill{{ end }} decode
{{- end -}}
