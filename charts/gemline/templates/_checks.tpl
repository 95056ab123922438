{{/* What the schema cannot say. Each message names the value, what it is and what it may be. */}}

{{- define "gemline.checks" -}}
{{- $name := include "gemline.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "release name: %q is no name of a RayService: it must begin with a letter and hold a-z, 0-9 and - alone" $name) -}}
{{- end -}}
{{- if gt (len $name) 47 -}}
{{- fail (printf "release name: %q has %d characters, a RayService may have 47" $name (len $name)) -}}
{{- end -}}
{{- if not .Values.redis.existingSecret -}}
{{- fail (printf "redis.existingSecret: name a Secret whose key %s holds the password: kubectl create secret generic gemline-redis --from-literal=%s=$(openssl rand -hex 24)" .Values.redis.passwordKey .Values.redis.passwordKey) -}}
{{- end -}}
{{- if and (not .Values.redis.internal) (not .Values.redis.external.host) -}}
{{- fail "redis.external.host: is empty, and redis.internal is false: name the host of your Redis" -}}
{{- end -}}
{{- if and (eq .Values.internalTls.mode "existingSecret") (not .Values.internalTls.existingSecret) -}}
{{- fail "internalTls.existingSecret: is empty, and internalTls.mode is existingSecret: name a Secret with tls.crt, tls.key and ca.crt" -}}
{{- end -}}
{{- if and .Values.gateway.tls.existingSecret (or .Values.routes.http.enabled .Values.routes.grpc.enabled) (not .Values.routes.backendTls.hostname) -}}
{{- fail "routes.backendTls.hostname: is empty, and the public ports speak TLS (gateway.tls.existingSecret): give a name that their certificate has" -}}
{{- end -}}
{{- with .Values.gateway.autoscaling -}}
{{- if lt (int .maxReplicas) (int .minReplicas) -}}
{{- fail (printf "gateway.autoscaling.maxReplicas: is %d, below minReplicas, %d" (int .maxReplicas) (int .minReplicas)) -}}
{{- end -}}
{{- if and .enabled (eq .kind "keda") -}}
{{- if not .keda.prometheus -}}
{{- fail "gateway.autoscaling.keda.prometheus: is empty, and gateway.autoscaling.kind is keda: give the address that KEDA asks, such as http://prometheus-operated.monitoring:9090" -}}
{{- end -}}
{{- if not $.Values.monitoring.serviceMonitor.enabled -}}
{{- fail "gateway.autoscaling.kind: is keda, and monitoring.serviceMonitor.enabled is false: Prometheus would not know the streams that it scales by" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if not .Values.models -}}
{{- fail "models: is empty; name at least one, or take one of the values-*.yaml beside values.yaml" -}}
{{- end -}}
{{- $seen := dict -}}
{{- range $index, $model := .Values.models -}}
{{- $at := printf "models[%d] (%s)" $index $model.name -}}
{{- range $key := list "name" "servedName" -}}
{{- $value := get $model $key -}}
{{- if hasKey $seen (printf "%s %s" $key $value) -}}
{{- fail (printf "%s: %s %q stands twice" $at $key $value) -}}
{{- end -}}
{{- $_ := set $seen (printf "%s %s" $key $value) true -}}
{{- end -}}
{{- include "gemline.checkModel" (dict "root" $ "model" $model "at" $at) -}}
{{- end -}}
{{- include "gemline.checkCluster" . -}}
{{- end -}}

{{- define "gemline.checkModel" -}}
{{- $model := .model -}}
{{- if and (eq $model.topology "split") (not $model.prefill) -}}
{{- fail (printf "%s: prefill: is not there, and topology is split" .at) -}}
{{- end -}}
{{- if and (eq $model.topology "colocated") $model.prefill -}}
{{- fail (printf "%s: prefill: is there, but with topology colocated decode workers prefill for themselves" .at) -}}
{{- end -}}
{{- $at := .at -}}
{{- range $role := list "prefill" "decode" -}}
{{- with get $model $role -}}
{{- if and .maxReplicas (lt (int .maxReplicas) (int .replicas)) -}}
{{- fail (printf "%s: %s.maxReplicas: is %d, below replicas, %d" $at $role (int .maxReplicas) (int .replicas)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if and (gt (int $model.tensorParallel) 1) (eq (include "gemline.placement" $model) "PACK") (ne .root.Values.internalTls.mode "none") -}}
{{- fail (printf "%s: tensorParallelPlacement: is PACK, and internalTls.mode is %s: ranks in several pods talk to each other in clear. Take STRICT_PACK, all ranks in one pod, or internalTls.mode none" $at .root.Values.internalTls.mode) -}}
{{- end -}}
{{- if $model.gpu -}}
{{- include "gemline.checkFits" . -}}
{{- end -}}
{{- end -}}
