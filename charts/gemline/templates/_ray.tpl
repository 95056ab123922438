{{/* Pods of the Ray cluster. KubeRay writes their commands, `ray start`, from rayStartParams. */}}

{{- define "gemline.rayProbes" -}}
{{/* Ours, for those that KubeRay would add call wget and, on workers, wait for a Serve proxy that is not there. */}}
startupProbe:
  httpGet: {path: {{ .path }}, port: {{ .port }}}
  periodSeconds: 5
  failureThreshold: 60
readinessProbe:
  httpGet: {path: {{ .path }}, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: {{ .path }}, port: {{ .port }}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 12
{{- end -}}

{{/* Takes {root}, and {account} of those that ask the API server. */}}
{{- define "gemline.rayPod" -}}
automountServiceAccountToken: {{ hasKey . "account" }}
serviceAccountName: {{ .account | default (include "gemline.fullname" .root) }}
enableServiceLinks: false
securityContext:
  {{- include "gemline.podSecurity" (dict "uid" 10001) | nindent 2 }}
{{- include "gemline.pullSecrets" .root }}
{{- end -}}

{{- define "gemline.rayEnv" -}}
- {name: HOME, value: /tmp}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
{{- end -}}

{{- define "gemline.rayMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: shm, mountPath: /dev/shm}
{{- end -}}

{{- define "gemline.rayVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 4Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: 1Gi}
{{- end -}}

{{/* Takes {root, model, role, worker}. */}}
{{- define "gemline.workerPod" -}}
{{- $root := .root -}}
{{- $model := .model -}}
{{- $part := dict "root" $root "part" .role -}}
{{- $rank := dict "model" $model "role" .role -}}
{{- $numGpus := int (include "gemline.numGpus" $rank) -}}
{{- $fromClaim := hasPrefix "pvc://" $model.source -}}
{{- $fromHub := hasPrefix "hf://" $model.source -}}
metadata:
  labels:
    {{- include "gemline.podLabels" $part | nindent 4 }}
    gemline.dev/model: {{ $model.name }}
    {{- if $fromHub }}
    gemline.dev/downloads: "true"
    {{- end }}
spec:
  {{- include "gemline.rayPod" (dict "root" $root) | nindent 2 }}
  terminationGracePeriodSeconds: {{ add $root.Values.ray.workerDrainSeconds 30 }}
  {{- if gt (int (include "gemline.podsOfReplica" $rank)) 1 }}
  # Ranks in several pods talk at every layer: rather near each other than apart.
  affinity:
    podAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: topology.kubernetes.io/zone
          labelSelector:
            matchLabels:
              {{- include "gemline.selector" $part | nindent 14 }}
              gemline.dev/model: {{ $model.name }}
  {{- else }}
  {{- include "gemline.spread" $part | nindent 2 }}
  {{- end }}
  {{- if $numGpus }}
  {{- with index $root.Values.gpus $model.gpu }}
  nodeSelector:
    {{- toYaml .nodeSelector | nindent 4 }}
  tolerations:
    {{- toYaml .tolerations | nindent 4 }}
  {{- end }}
  {{- end }}
  initContainers:
  - name: model
    image: {{ include "gemline.image" (dict "root" $root "name" "worker") }}
    imagePullPolicy: {{ $root.Values.images.worker.pullPolicy }}
    command: [gemline, fetch]
    args:
    {{- if $fromClaim }}
    - {{ include "gemline.modelDir" $model }}
    {{- else }}
    - {{ $model.source }}
    - --to={{ include "gemline.modelDir" $model }}
    {{- end }}
    {{- with $model.manifestSha256 }}
    - --manifest-sha256={{ . }}
    {{- end }}
    env:
    - {name: HOME, value: /tmp}
    {{- if $fromHub }}
    {{- with $model.hubTokenSecret }}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
    {{- end }}
    {{- else }}
    - {name: HF_HUB_OFFLINE, value: "1"}
    {{- end }}
    resources:
      requests: {cpu: 500m, memory: 1Gi}
      limits: {memory: 2Gi}
    securityContext:
      {{- include "gemline.containerSecurity" $root | nindent 6 }}
    volumeMounts:
    - {name: tmp, mountPath: /tmp}
    {{- include "gemline.modelMount" (dict "model" $model "readOnly" $fromClaim) | nindent 4 }}
  containers:
  - name: ray-worker
    image: {{ include "gemline.image" (dict "root" $root "name" "worker") }}
    imagePullPolicy: {{ $root.Values.images.worker.pullPolicy }}
    env:
    {{- include "gemline.rayEnv" $root | nindent 4 }}
    - {name: HF_HUB_OFFLINE, value: "1"}
    - {name: GEMLINE_CACHE, value: /cache/gemline}
    - {name: TRITON_CACHE_DIR, value: /cache/triton}
    {{- include "gemline.redisEnv" $root | nindent 4 }}
    {{- include "gemline.otlpEnv" $root | nindent 4 }}
    ports:
    - {name: grpc, containerPort: {{ include "gemline.workerPort" . }}, protocol: TCP}
    - {name: worker-metrics, containerPort: {{ include "gemline.workerMetricsPort" . }}, protocol: TCP}
    {{- include "gemline.rayProbes" (dict "path" "/api/local_raylet_healthz" "port" 52365) | nindent 4 }}
    {{- $resources := deepCopy .worker.resources }}
    {{- if $numGpus }}
    {{- $_ := set $resources "limits" (merge (dict "nvidia.com/gpu" (toString $numGpus)) ($resources.limits | default dict)) }}
    {{- end }}
    resources:
      {{- toYaml $resources | nindent 6 }}
    securityContext:
      {{- include "gemline.containerSecurity" $root | nindent 6 }}
    volumeMounts:
    {{- include "gemline.rayMounts" $root | nindent 4 }}
    - {name: cache, mountPath: /cache}
    {{- include "gemline.modelMount" (dict "model" $model "readOnly" true) | nindent 4 }}
    {{- if ne $root.Values.internalTls.mode "none" }}
    - {name: tls, mountPath: /tls, readOnly: true}
    {{- end }}
  volumes:
  {{- include "gemline.rayVolumes" $root | nindent 2 }}
  - name: cache
    emptyDir: {sizeLimit: 2Gi}
  - name: model
    {{- if $fromClaim }}
    persistentVolumeClaim: {claimName: {{ include "gemline.claim" $model }}, readOnly: true}
    {{- else }}
    emptyDir: {sizeLimit: {{ $model.volumeSize }}}
    {{- end }}
  {{- if ne $root.Values.internalTls.mode "none" }}
  - name: tls
    secret: {secretName: {{ include "gemline.tlsSecret" $root }}, defaultMode: 0440}
  {{- end }}
{{- end -}}

{{- define "gemline.claim" -}}
{{- trimPrefix "pvc://" .source | splitList "/" | first -}}
{{- end -}}

{{/* A claim is mounted as the model's own folder; what is fetched is put beside its place first, so that it comes whole. */}}
{{- define "gemline.modelMount" -}}
{{- $model := .model -}}
- name: model
  {{- if hasPrefix "pvc://" $model.source }}
  mountPath: {{ include "gemline.modelDir" $model }}
  {{- with trimPrefix "pvc://" $model.source | splitList "/" | rest | join "/" }}
  subPath: {{ . }}
  {{- end }}
  {{- else }}
  mountPath: /models
  {{- end }}
  readOnly: {{ .readOnly }}
{{- end -}}
