{{/* What pods have in common. */}}

{{- define "gemline.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ .uid }}
runAsGroup: {{ .uid }}
fsGroup: {{ .uid }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "gemline.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "gemline.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* How a process reaches Redis. The password comes of the secret, and the kubelet puts it into the URL. */}}
{{- define "gemline.redisEnv" -}}
- name: GEMLINE_REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ .Values.redis.existingSecret }}, key: {{ .Values.redis.passwordKey }}}}
- name: GEMLINE_REDIS_URL
  value: {{ include "gemline.redisScheme" . }}://:$(GEMLINE_REDIS_PASSWORD)@{{ include "gemline.redisHost" . }}:{{ include "gemline.redisPort" . }}/{{ .Values.redis.internal | ternary 0 .Values.redis.external.database }}
{{- end -}}

{{- define "gemline.otlpEnv" -}}
{{- with .Values.otlp.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Pods of one part go to different nodes, and zones, where they can. */}}
{{- define "gemline.spread" -}}
topologySpreadConstraints:
{{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
- maxSkew: 1
  topologyKey: {{ $key }}
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "gemline.selector" $ | nindent 6 }}
{{- end }}
{{- end -}}
