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
    {{- if gt (int $model.tensorParallel) 1 }}
    tensor_parallel_placement: {{ include "gemline.placement" $model }}
    {{- end }}
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
    {{- $rank := dict "model" $model "role" $role }}
    {{- $place := printf "gemline-%s-%s" $model.name $role }}
    ray_actor_options:
      num_cpus: 0
      num_gpus: {{ include "gemline.gpusOfRank" $rank }}
      resources: { {{- $place }}: 1}
    {{- $numRanks := int (include "gemline.numRanks" $rank) }}
    {{- if gt $numRanks 1 }}
    # One a rank: the replica is in the first, its other ranks are actors in the others.
    placement_group_bundles:
    {{- range until $numRanks }}
    - { {{- if ne (include "gemline.gpusOfRank" $rank) "0" }}GPU: 1, {{ end }}{{ $place }}: 1}
    {{- end }}
    placement_group_strategy: {{ include "gemline.placement" $model }}
    {{- end }}
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

{{/* Where Ray puts a model's ranks, if there are several: all in one pod, or in pods of one rank each. */}}
{{- define "gemline.placement" -}}
{{- .tensorParallelPlacement | default "STRICT_PACK" -}}
{{- end -}}

{{/* This and the next three take {model, role}. Ranks of an engine; a worker that has none is one process, too. */}}
{{- define "gemline.numRanks" -}}
{{- eq .role "tokenization" | ternary 1 .model.tensorParallel | int -}}
{{- end -}}

{{- define "gemline.gpusOfRank" -}}
{{- or (eq .model.gpu "") (eq .role "tokenization") | ternary 0 1 -}}
{{- end -}}

{{- define "gemline.ranksOfPod" -}}
{{- eq (include "gemline.placement" .model) "PACK" | ternary 1 (include "gemline.numRanks" .) -}}
{{- end -}}

{{- define "gemline.podsOfReplica" -}}
{{- div (include "gemline.numRanks" .) (include "gemline.ranksOfPod" .) -}}
{{- end -}}

{{/* GPUs of a pod. */}}
{{- define "gemline.numGpus" -}}
{{- mul (include "gemline.gpusOfRank" .) (include "gemline.ranksOfPod" .) -}}
{{- end -}}

{{- define "gemline.modelDir" -}}
/models/{{ .name }}
{{- end -}}
