{{/* serveConfigV2: one application a model and role; `args` are WorkerSettings (services/gemline/serve/settings.py). */}}

{{- define "gemline.serveConfig" -}}
proxy_location: HeadOnly  # no request travels through Ray; the operator asks this proxy whether Serve is well
http_options: {host: 0.0.0.0, port: 8000}
applications:
{{- range $model := .Values.models }}
{{- range $role := splitList " " (include "gemline.roles" $model) }}
{{- $worker := get $model $role }}
- name: gemline-{{ $role }}-{{ $model.name }}
  import_path: gemline.serve.ray_app:application
  route_prefix: null
  args:
    role: {{ $role }}
    model_dir: {{ include "gemline.modelDir" $model }}
    served_model_name: {{ $model.servedName | quote }}
    bind: 0.0.0.0
    port: {{ include "gemline.workerPort" $ }}
    metrics_port: {{ include "gemline.workerMetricsPort" $ }}
    drain_timeout_s: {{ $.Values.ray.workerDrainSeconds }}
    {{- if eq $role "tokenization" }}
    system_prompt: {{ $model.systemPrompt }}
    {{- else }}
    dtype: {{ $model.dtype }}
    quantization: {{ $model.quantization }}
    tensor_parallel: {{ int $model.tensorParallel }}
    {{- with $model.kvCacheDtype }}
    kv_cache_dtype: {{ . }}
    {{- end }}
    {{- with $worker.threads }}
    threads: {{ int . }}
    {{- end }}
    {{- with $worker.kvBlocks }}
    kv_blocks: {{ int . }}
    {{- end }}
    {{- with $worker.maxRunning }}
    max_running: {{ int . }}
    {{- end }}
    {{- with $worker.maxBatchTokens }}
    max_batch_tokens: {{ int . }}
    {{- end }}
    {{- end }}
    {{- if eq $role "decode" }}
    prefill: {{ eq $model.topology "split" | ternary "auto" "never" }}
    {{- end }}
    {{- if ne $.Values.internalTls.mode "none" }}
    internal_tls_certificate: /tls/tls.crt
    internal_tls_key: /tls/tls.key
    internal_tls_ca: /tls/ca.crt
    {{- end }}
  deployments:
  - name: {{ $role }}
    {{- if include "gemline.scales" $worker }}
    autoscaling_config:
      min_replicas: {{ int $worker.replicas }}
      initial_replicas: {{ int $worker.replicas }}
      max_replicas: {{ int $worker.maxReplicas }}
      upscale_delay_s: 0  # the policy has its own
      downscale_delay_s: 0
      metrics_interval_s: 1
      look_back_period_s: 4
      policy:
        policy_function: gemline.serve.ray_policy:RolePolicy
        policy_kwargs:
          role: {{ $role }}
          min_replicas: {{ int $worker.replicas }}
          max_replicas: {{ int $worker.maxReplicas }}
          {{- with $.Values.ray.autoscaling }}
          ttft_slo_s: {{ .ttftSloSeconds }}
          itl_slo_s: {{ .itlSloSeconds }}
          up_after_s: {{ .upAfterSeconds }}
          down_after_s: {{ .downAfterSeconds }}
          {{- end }}
          prefills: {{ eq $model.topology "colocated" }}
    {{- else }}
    num_replicas: {{ int $worker.replicas }}
    {{- end }}
    ray_actor_options:
      num_cpus: 0
      num_gpus: {{ include "gemline.numGpus" (dict "model" $model "role" $role) }}
      resources: {gemline-{{ $model.name }}-{{ $role }}: 1}
{{- end }}
{{- end }}
{{- end -}}

{{/* Whether a role's workers have a range: "true", or nothing. */}}
{{- define "gemline.scales" -}}
{{- if gt (int (get . "maxReplicas" | default 0)) (int .replicas) }}true{{ end -}}
{{- end -}}

{{/* The same of any workers there are. */}}
{{- define "gemline.anyScales" -}}
{{- range $model := .Values.models }}
{{- range $role := splitList " " (include "gemline.roles" $model) }}
{{- with get $model $role }}
{{- include "gemline.scales" . }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "gemline.numGpus" -}}
{{- or (eq .model.gpu "") (eq .role "tokenization") | ternary 0 (int .model.tensorParallel) -}}
{{- end -}}

{{- define "gemline.modelDir" -}}
/models/{{ .name }}
{{- end -}}
